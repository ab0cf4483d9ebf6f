//go:build race

package direct

import (
	"runtime"
	"syscall"
	"unsafe"
)

// The race detector takes a write to a connection to happen before a read of it, because the functions of package syscall
// tell it so. It does not see the calls that are made here. So they are reported to it by calls that do nothing: a write to
// no descriptor, and a read of no bytes.
const raceEnabled = true

// raceRead tells the race detector that p was read from a socket.
func raceRead(fd int, p []byte) {
	if len(p) > 0 {
		runtime.RaceWriteRange(unsafe.Pointer(unsafe.SliceData(p)), len(p))
	}
	_, _ = syscall.Read(fd, p[:0]) // only for the race detector
}

// raceWrite tells the race detector that p will be written to a socket.
func raceWrite(p []byte) {
	if len(p) > 0 {
		runtime.RaceReadRange(unsafe.Pointer(unsafe.SliceData(p)), len(p))
	}
	_, _ = syscall.Write(-1, nil) // only for the race detector; it fails
}
