package archive

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"sync"
)

const (
	// blockBytes is what is read of a distant file at once. Small columns lie side by side in one block, and a large one in few.
	blockBytes = 1 << 20
	// aheadBlocks is how many blocks are read at once by who reads a file from block to block.
	aheadBlocks = 4
)

// cachedStore keeps blocks of a distant store's files in memory, those that were used last.
type cachedStore struct {
	*Bucket

	mu     sync.Mutex
	blocks map[blockKey]*block
	order  *list.List // of the blocks that have been read, the last used first
	bytes  int64      // of those
	most   int64
}

type blockKey struct {
	name string
	at   int64 // its place among the file's blocks
}

// block is a part of a file that has been read, or is being read until ready is closed.
type block struct {
	key   blockKey
	ready chan struct{}
	data  []byte
	err   error
	place *list.Element // in order; nil while it is being read
}

// newCachedStore returns a store that keeps so many bytes of another one's files.
func newCachedStore(store *Bucket, most int64) *cachedStore {
	return &cachedStore{Bucket: store, blocks: make(map[blockKey]*block), order: list.New(), most: most}
}

// Open is that of Store.
func (c *cachedStore) Open(ctx context.Context, name string, size int64) (Object, error) {
	object, err := c.Bucket.Open(ctx, name, size)
	if err != nil {
		return nil, err
	}
	return &cachedObject{object, c, name, size}, nil
}

// cachedObject is a file of a cachedStore.
type cachedObject struct {
	Object
	store *cachedStore
	name  string
	size  int64
}

// ReadAt is that of RangeReader. The end of a file is not kept: a File has it for as long as it is open.
func (o *cachedObject) ReadAt(ctx context.Context, b []byte, at int64) (n int, err error) {
	if at+int64(len(b)) >= o.size {
		return o.Object.ReadAt(ctx, b, at)
	}
	for n < len(b) {
		data, err := o.block(ctx, (at+int64(n))/blockBytes)
		if err != nil {
			return n, err
		}
		n += copy(b[n:], data[(at+int64(n))%blockBytes:])
	}
	return n, nil
}

// block returns a block of the file. If another one reads it, block waits for that.
func (o *cachedObject) block(ctx context.Context, at int64) ([]byte, error) {
	for {
		found, mine := o.claim(at)
		if mine != nil {
			return o.read(ctx, mine)
		}
		select {
		case <-found.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// Who read it may have left before it came.
		if isContextError(found.err) && ctx.Err() == nil {
			continue
		}
		return found.data, found.err
	}
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// claim returns a block that is there or is being read. If there is none, it returns those that the caller is to read: that one, and if the one
// before it is there, some after it.
func (o *cachedObject) claim(at int64) (found *block, mine []*block) {
	c := o.store
	c.mu.Lock()
	defer c.mu.Unlock()
	if found = c.blocks[blockKey{o.name, at}]; found != nil {
		if found.place != nil {
			c.order.MoveToFront(found.place)
		}
		return found, nil
	}
	most := 1
	if c.blocks[blockKey{o.name, at - 1}] != nil {
		most = aheadBlocks
	}
	for ; len(mine) < most && at*blockBytes < o.size; at++ {
		key := blockKey{o.name, at}
		if c.blocks[key] != nil {
			break
		}
		b := &block{key: key, ready: make(chan struct{})}
		c.blocks[key] = b
		mine = append(mine, b)
	}
	return nil, mine
}

// read reads blocks that follow each other, and returns the data of the first.
func (o *cachedObject) read(ctx context.Context, mine []*block) ([]byte, error) {
	from := mine[0].key.at * blockBytes
	to := min(o.size, from+int64(len(mine))*blockBytes)
	data := make([]byte, to-from)
	n, err := o.Object.ReadAt(ctx, data, from)
	if n == len(data) {
		err = nil // io.EOF may come with the end
	}
	c := o.store
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, b := range mine {
		if b.err = err; err != nil {
			delete(c.blocks, b.key)
		} else {
			b.data = data[i*blockBytes : min(len(data), (i+1)*blockBytes)]
			if len(mine) > 1 {
				b.data = bytes.Clone(b.data) // so that each can be forgotten alone
			}
			b.place = c.order.PushFront(b)
			c.bytes += int64(len(b.data))
		}
		close(b.ready)
	}
	first := mine[0].data
	for e := c.order.Back(); e != nil && c.bytes > c.most; e = c.order.Back() {
		old := c.order.Remove(e).(*block)
		c.bytes -= int64(len(old.data))
		delete(c.blocks, old.key)
	}
	return first, err
}
