// Package send sends the lines of files, and of standard input, to Millrace's API, each once.
//
// A file is read in blocks of whole lines. The records of a block are the body of one POST /log/batch, under an Idempotency-Key that is
// made of the file's identity (device, inode, a fingerprint of its first bytes), the block's place, and the body. Before a block is sent
// for the first time, its place and its key are noted in the file's position file. So whatever is killed, a later run knows which blocks may
// be on their way, makes the same bodies of them, and sends them under the same keys: the API stores each once.
//
// Run owns all goroutines: one that reads each file (when it follows, one for each generation of a rotated file), one for each block that is
// under way, one that reads standard input. All but the last have ended when Run returns: a read of standard input can't be interrupted.
package send
