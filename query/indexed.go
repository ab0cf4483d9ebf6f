package query

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"millrace/query/language"
)

// indexedAge is how long the list of indexed fields is good. It is only a matter of speed whether it is right.
const indexedAge = 10 * time.Second

// indexedFields are the fields that have an index, as the worker notes them.
type indexedFields struct {
	reading sync.Mutex // held by the one who reads the note
	mu      sync.Mutex // guards the fields below
	fields  language.Indexed
	readAt  time.Time
}

// indexed returns the fields that have an index. It needs a connection if the list is old. An error leaves the list as it was.
func (s *store) indexed(ctx context.Context) language.Indexed {
	f := &s.indexedFields
	f.mu.Lock()
	fields, isOld := f.fields, time.Since(f.readAt) > indexedAge
	f.mu.Unlock()
	if !isOld || !f.reading.TryLock() {
		return fields
	}
	defer f.reading.Unlock()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var note string
	if err := s.pool.QueryRow(ctx, "SELECT coalesce((SELECT value FROM settings WHERE name = 'index_fields'), 'null')").Scan(&note); err == nil {
		fields = nil // the old list is others' too
		_ = json.Unmarshal([]byte(note), &fields)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fields, f.readAt = fields, time.Now()
	return fields
}

// usesIndexed reports whether the filter looks a field up in an index of INDEX_FIELDS.
func (s *search) usesIndexed() bool {
	var without, with language.Args
	return s.filter.SQL(&without, nil) != s.filter.SQL(&with, s.indexed)
}
