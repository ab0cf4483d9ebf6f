package send

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

// headBytes is how many of a file's first bytes tell it from another that has its inode.
const headBytes = 1024

// pending is a block that may be on its way to the API, or stored, as far as the position file knows.
type pending struct {
	Start int64     `json:"start"` // bytes
	End   int64     `json:"end"`
	Line  int64     `json:"line"` // lines before it
	Lines int64     `json:"lines"`
	Key   uuid.UUID `json:"key"`
}

// state is what a position file holds. Offsets are bytes of the decompressed content.
type state struct {
	Path     string    `json:"path"` // absolute; where the file was seen last
	Device   uint64    `json:"device"`
	Inode    uint64    `json:"inode"`
	Identity string    `json:"identity"` // of the file, in the keys of its blocks
	Head     string    `json:"head"`     // SHA-256 of the first HeadSize bytes, in hex
	HeadSize int       `json:"head_bytes"`
	Next     int64     `json:"next"` // all before it is settled, or pending
	Line     int64     `json:"line"` // how many lines are before Next
	Pending  []pending `json:"pending,omitempty"`
	Rotated  bool      `json:"rotated,omitempty"` // the path led to another file, and this one was read to its end
	Saved    time.Time `json:"saved"`
}

// position is the position of one file, as its position file has it. Many goroutines may call its methods at once.
type position struct {
	name string // the position file

	mu    sync.Mutex
	state state
	lock  *os.File
}

// positionName returns the name of the position file of a data file.
func positionName(folder string, id fileID) string {
	return filepath.Join(folder, fmt.Sprintf("%d-%d.json", id.device, id.inode))
}

// lockName returns the name of the file that is locked while somebody has a position.
func lockName(position string) string { return strings.TrimSuffix(position, ".json") + ".lock" }

// openPosition returns the position of the data file id, whose content begins with head and has at least size bytes. If there is none, or it is that of another file that had the inode, the
// position is the file's beginning; before then is that of the other file. It fails if another process has the position.
func openPosition(folder, path string, id fileID, head []byte, size int64) (p *position, before *state, err error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, nil, err
	}
	p = &position{name: positionName(folder, id)}
	if err := p.take(path); err != nil {
		return nil, nil, err
	}
	old, err := readState(p.name)
	switch {
	case err == nil && old.isOf(head) && old.Next <= size:
		p.state = old
		p.state.Path, p.state.Rotated = path, false
		return p, nil, nil
	case err == nil:
		before = &old
	case !errors.Is(err, os.ErrNotExist):
		p.close()
		return nil, nil, err
	}
	p.state = newState(path, id, head)
	return p, before, nil
}

// takenHere has the names of the position files that this process has.
var takenHere sync.Map

// isTakenHere reports whether this process has the position of a file.
func isTakenHere(folder string, id fileID) bool {
	_, ok := takenHere.Load(positionName(folder, id))
	return ok
}

// take keeps other processes, and other streams of this one, from the position of the data file at path.
func (p *position) take(path string) (err error) {
	if p.lock, err = lockFile(lockName(p.name)); err != nil {
		return fmt.Errorf("%s: another millrace send has its position: %w", path, err)
	}
	takenHere.Store(p.name, true)
	return nil
}

// newState returns the state of a file of which nothing was sent.
func newState(path string, id fileID, head []byte) state {
	sum := sha256.Sum256(head)
	s := state{Path: path, Device: id.device, Inode: id.inode, Head: hex.EncodeToString(sum[:]), HeadSize: len(head)}
	identity := sha256.Sum256(fmt.Appendf(nil, "%d %d %s", id.device, id.inode, s.Head))
	s.Identity = hex.EncodeToString(identity[:16])
	return s
}

// isOf reports whether the state may be that of a file that begins with head.
func (s *state) isOf(head []byte) bool {
	if len(head) < s.HeadSize {
		return false
	}
	sum := sha256.Sum256(head[:s.HeadSize])
	return hex.EncodeToString(sum[:]) == s.Head
}

// readState reads a position file.
func readState(name string) (s state, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("the position file %s can't be read: %w", name, err)
	}
	if s.Next < 0 || s.HeadSize < 0 || s.HeadSize > headBytes || slices.ContainsFunc(s.Pending, func(p pending) bool {
		return p.Start < 0 || p.End <= p.Start || p.End > s.Next || p.End-p.Start > 2*maxLine
	}) {
		return s, fmt.Errorf("the position file %s holds a position that can't be", name)
	}
	return s, nil
}

// savedStates returns the states of all positions whose files were seen at path last, the one that was saved first at the front.
func savedStates(folder, path string) (found []state) {
	names, _ := filepath.Glob(filepath.Join(folder, "*.json")) // the pattern is well formed
	for _, name := range names {
		if s, err := readState(name); err == nil && s.Path == path {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b state) int { return a.Saved.Compare(b.Saved) })
	return found
}

// begin notes that a batch is about to be sent, or that its block needs no sending, and saves the position.
func (p *position) begin(b *batch, head []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(head) > p.state.HeadSize {
		sum := sha256.Sum256(head)
		p.state.Head, p.state.HeadSize = hex.EncodeToString(sum[:]), len(head)
	}
	p.state.Next, p.state.Line = b.end, b.line+b.lineEnds
	if b.records.Accepted > 0 {
		p.state.Pending = append(p.state.Pending, b.pending())
	}
	return p.saveLocked()
}

// replace puts other blocks in the place of a pending one, and saves the position.
func (p *position) replace(key uuid.UUID, by ...pending) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.state.Pending, func(q pending) bool { return q.Key == key })
	if i < 0 {
		return fmt.Errorf("the position file %s has no block %s", p.name, key)
	}
	p.state.Pending = slices.Replace(p.state.Pending, i, i+1, by...)
	return p.saveLocked()
}

// settle notes that the block of a key is stored or refused. The position is saved with the next block, or by save: if it is not, the block is
// sent again under its key.
func (p *position) settle(key uuid.UUID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Pending = slices.DeleteFunc(p.state.Pending, func(q pending) bool { return q.Key == key })
}

// held returns the blocks that are pending, by their place.
func (p *position) held() []pending {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := slices.Clone(p.state.Pending)
	slices.SortFunc(held, func(a, b pending) int { return int(min(max(a.Start-b.Start, -1), 1)) })
	return held
}

// save writes the position file.
func (p *position) save() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.saveLocked()
}

// saveLocked writes the position file: another one that takes its place once it is on disk.
func (p *position) saveLocked() error {
	p.state.Saved = time.Now().UTC()
	text, err := json.Marshal(p.state)
	if err != nil {
		return err
	}
	next, err := os.OpenFile(p.name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = next.Write(append(text, '\n'))
	if err == nil {
		err = next.Sync()
	}
	if closeErr := next.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(next.Name(), p.name)
	}
	return err
}

// forget begins the position anew.
func (p *position) forget(id fileID, head []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = newState(p.state.Path, id, head)
	return p.saveLocked()
}

// close gives the position up to other processes.
func (p *position) close() {
	takenHere.Delete(p.name)
	_ = p.lock.Close() // which unlocks it
}

// keyTime returns the time that a key was made for.
func keyTime(key uuid.UUID) time.Time { return time.UnixMilli(frame.Millis(key)) }

// readHead returns the first bytes of a stream.
func readHead(r io.Reader) ([]byte, error) {
	head := make([]byte, headBytes)
	n, err := io.ReadFull(r, head)
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return head[:n], err
}
