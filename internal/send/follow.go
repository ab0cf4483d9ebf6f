package send

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"millrace/internal/retry"
)

// quietTime is how long a file that was rotated away must have been silent before it is taken to be complete: a program writes to it until it
// opens its log anew.
const quietTime = 10 * time.Second

// keptTime is how long the position of a file that was rotated away is kept.
const keptTime = 90 * 24 * time.Hour

// errTruncated says that a file has become shorter than what was read of it.
var errTruncated = errors.New("the file was truncated")

// followAll follows all files until ctx is done.
func (s *sender) followAll(ctx context.Context) error {
	var following sync.WaitGroup
	for _, path := range s.Files {
		following.Go(func() {
			f := &follower{sender: s, path: path}
			if err := f.run(ctx); err != nil && ctx.Err() == nil {
				s.abandon(err)
			}
			f.draining.Wait()
		})
	}
	following.Wait()
	return nil
}

// follower follows what a path leads to, from file to file.
type follower struct {
	*sender
	path     string
	draining sync.WaitGroup // files that were rotated away, each read to its end
}

// run follows the path until ctx is done.
func (f *follower) run(ctx context.Context) error {
	absolute, err := filepath.Abs(f.path)
	if err != nil {
		return err
	}
	if err := f.catchUp(ctx, absolute); err != nil {
		return err
	}
	told := false
	for ctx.Err() == nil {
		o, err := openFile(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if !told {
				told = true
				f.Note("%s is not there yet", f.path)
			}
			_ = retry.Sleep(ctx, idleTime) // the loop looks at ctx
			continue
		case err != nil:
			return err
		case o.compressed:
			o.close()
			return errors.New(f.path + " is compressed: --follow is for files that grow")
		}
		told = false
		truncated, err := f.followFile(ctx, o)
		if err != nil {
			return err
		}
		if truncated {
			f.Note("%s was truncated: going on at its beginning", f.path)
			if err := f.catchUp(ctx, absolute); err != nil {
				return err
			}
		}
	}
	return nil
}

// followFile follows one file until the path leads to another one, and leaves its end to a goroutine of its own; or until it is truncated.
func (f *follower) followFile(ctx context.Context, o *opened) (truncated bool, err error) {
	t, err := f.newStream(f.path, o)
	if err != nil {
		o.close()
		return false, err
	}
	rotated := make(chan struct{})
	o.count.r = &growing{ctx: ctx, path: f.path, file: o.file, rotated: rotated}
	ended := make(chan error, 1)
	f.draining.Go(func() {
		err := t.run(ctx)
		if err == nil && ctx.Err() == nil {
			err = t.position.rotate()
		}
		o.close()
		t.position.close() // a truncated file has the same
		ended <- err
	})
	select {
	case err := <-ended:
		if errors.Is(err, errTruncated) {
			return true, nil
		}
		return false, err
	case <-rotated:
	}
	f.draining.Go(func() {
		if err := <-ended; err != nil && ctx.Err() == nil {
			f.Note("%s, after it was rotated: %v", f.path, err)
		}
	})
	return false, nil
}

// growing reads a file that grows. It says errIdle at the end of what is there, and io.EOF once the path leads elsewhere and the file is silent, or ctx is done.
type growing struct {
	ctx     context.Context
	path    string
	file    *os.File
	rotated chan struct{} // closed once the path leads elsewhere
	gone    bool          // it is closed
	quiet   time.Time     // since when nothing came
}

func (g *growing) Read(p []byte) (int, error) {
	n, err := g.file.Read(p)
	if n > 0 || err != io.EOF {
		g.quiet = time.Time{}
		return n, err
	}
	if g.quiet.IsZero() {
		g.quiet = time.Now()
		return 0, errIdle // what is there is sent first
	}
	info, err := g.file.Stat()
	if err != nil {
		return 0, err
	}
	if at, err := g.file.Seek(0, io.SeekCurrent); err != nil {
		return 0, err
	} else if info.Size() < at {
		return 0, errTruncated
	}
	if now, err := os.Stat(g.path); err != nil || !os.SameFile(now, info) {
		if !g.gone {
			g.gone = true
			close(g.rotated)
		}
		if time.Since(g.quiet) > quietTime {
			return 0, io.EOF
		}
	}
	if retry.Sleep(g.ctx, idleTime) != nil {
		return 0, g.ctx.Err()
	}
	return 0, errIdle
}

// rotated is what a rotation adds to a file's name: .1, -20260304, .2026-03-04T05, and the end of a compressed file.
var rotated = regexp.MustCompile(`^[.-][0-9][0-9T:_.-]*(\.(gz|zst|bz2))?$`)

// catchUp sends what is left of the files that the path led to before: those that were rotated away or truncated while nobody followed.
func (f *follower) catchUp(ctx context.Context, path string) error {
	saved := savedStates(f.Folder, path)
	if len(saved) == 0 {
		return nil
	}
	siblings := siblingsOf(path)
	sentTo := time.Time{} // when the newest file that was found again was written last
	for _, s := range saved {
		if isTakenHere(f.Folder, fileID{s.Device, s.Inode}) {
			continue // it is being read to its end
		}
		if s.Rotated && len(s.Pending) == 0 {
			if time.Since(s.Saved) > keptTime {
				name := positionName(f.Folder, fileID{s.Device, s.Inode})
				_ = os.Remove(name) // another time, then
				_ = os.Remove(lockName(name))
			}
			continue
		}
		now, err := openFile(path)
		isThis := err == nil && now.id == (fileID{s.Device, s.Inode}) && s.isOf(now.head) && s.Next <= now.size
		if err == nil {
			now.close()
		}
		if isThis {
			continue // it is followed
		}
		found, at := findFile(&s, siblings)
		if found == "" {
			if len(s.Pending) > 0 {
				if err := f.lost(path, s.Pending); err != nil {
					return err
				}
			}
			f.Note("%s: what was read of it up to byte %d is gone, and no rotated file begins like it: what was written behind that is not sent", path, s.Next)
			s.Pending, s.Rotated = nil, true
			p := &position{name: positionName(f.Folder, fileID{s.Device, s.Inode}), state: s}
			if err := p.save(); err != nil {
				return err
			}
			continue
		}
		if err := f.sendRest(ctx, found, s); err != nil {
			return err
		}
		if at.After(sentTo) {
			sentTo = at
		}
	}
	if sentTo.IsZero() {
		return nil
	}
	// Files that came and went in between.
	for _, sibling := range siblings {
		if sibling.at.After(sentTo) && !slices.ContainsFunc(saved, func(s state) bool { return s.HeadSize > 0 && s.isOf(sibling.head) }) {
			f.Note("%s was written and rotated away while nobody followed: sending it", sibling.path)
			if err := f.sendFile(ctx, sibling.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// sibling is a file that a rotation may have made.
type sibling struct {
	path string
	at   time.Time // when it was written last
	id   fileID
	head []byte // of its content
	size int64  // of its content; the most that there is if it is compressed
}

// siblingsOf returns the files beside path that a rotation may have made of it, the oldest first.
func siblingsOf(path string) (found []sibling) {
	entries, _ := os.ReadDir(filepath.Dir(path)) // what can't be read has nothing to be found
	for _, e := range entries {
		tail, ok := strings.CutPrefix(e.Name(), filepath.Base(path))
		if !ok || !rotated.MatchString(tail) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		name := filepath.Join(filepath.Dir(path), e.Name())
		o, err := openFile(name)
		if err != nil {
			continue
		}
		s := sibling{name, info.ModTime(), o.id, o.head, o.size}
		if o.compressed {
			s.size = 1<<63 - 1
		}
		o.close()
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b sibling) int { return a.at.Compare(b.at) })
	return found
}

// findFile returns the file of a state among siblings: that with its inode, or the newest that begins like it.
func findFile(s *state, siblings []sibling) (path string, at time.Time) {
	for _, other := range slices.Backward(siblings) {
		if s.HeadSize == 0 || !s.isOf(other.head) || other.size < s.Next {
			continue
		}
		if other.id == (fileID{s.Device, s.Inode}) {
			return other.path, other.at
		}
		if path == "" {
			path, at = other.path, other.at
		}
	}
	return path, at
}

// sendRest sends what is left of a file that was followed, which is at path now.
func (f *follower) sendRest(ctx context.Context, path string, s state) error {
	o, err := openFile(path)
	if err != nil {
		return err
	}
	defer o.close()
	p := &position{name: positionName(f.Folder, fileID{s.Device, s.Inode}), state: s}
	if err := p.take(path); err != nil {
		return err
	}
	defer p.close()
	t := &stream{sender: f.sender, name: path, position: p, opened: o, identity: s.Identity}
	t.cutter = cutter{r: o.content, read: func() int64 { return o.count.n }}
	if err := t.run(ctx); err != nil {
		return err
	}
	return p.rotate()
}

// rotate notes that the file was read to its end, and that its path leads to another one.
func (p *position) rotate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Rotated = true
	return p.saveLocked()
}
