// Package keys holds the API keys. It makes keys, reads the file that lists them, finds the key of a request, and
// limits how many records a second each may store. Only a key's SHA-256 is ever stored.
//
// It starts no goroutine. The caller runs File.Watch, which reads the file again when it changes, and returns when
// its context is done.
package keys

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"millrace/internal/config"
)

// Scopes that a key may have.
const (
	Write = "write" // POST /log, POST /log/batch
	Read  = "read"  // everything that the query service answers
)

// maxRate is the largest rate and burst: no machine stores so much.
const maxRate = 1_000_000_000

// Key is a line of the keys file. Many goroutines may call its methods at once. A nil Key stands for a client if no
// keys are asked for; Wait, Take, Answered and Gone may be called on it.
type Key struct {
	Name   string
	Hash   [sha256.Size]byte
	Scopes []string
	Rate   int // records/s that it may store; 0 is no limit
	Burst  int // records that it may store at once after a pause; 0 only without a Rate

	limit *limit
	use   *use
	gone  chan struct{}
}

// New returns a key with 130 bits of randomness. secret is what the client sends; the Key does not hold it.
func New(name string, scopes []string) (k Key, secret string, err error) {
	secret = config.KeyPrefix + rand.Text()
	k = Key{Name: name, Hash: sha256.Sum256([]byte(secret)), Scopes: scopes}
	return k, secret, k.Validate()
}

// String returns the key's line in the file.
func (k Key) String() string {
	line := k.Name + " " + hex.EncodeToString(k.Hash[:]) + " " + strings.Join(k.Scopes, ",")
	if k.Rate > 0 {
		line += fmt.Sprintf(" rate=%d burst=%d", k.Rate, k.Burst)
	}
	return line
}

// Validate returns an error if Parse would refuse the line that String returns.
func (k Key) Validate() error {
	// The name is a label of the metrics.
	if strings.HasPrefix(k.Name, config.KeyPrefix) {
		return errors.New("the name looks like a key: it would stand in the metrics")
	}
	if k.Name == "" || k.Name[0] == '#' || !utf8.ValidString(k.Name) || strings.ContainsFunc(k.Name, isNotOfName) {
		return fmt.Errorf("key name %q: want a printable word that does not start with #", k.Name)
	}
	if k.Hash == sha256.Sum256(nil) {
		return errors.New("the SHA-256 is that of nothing: it would let in who sends no key")
	}
	if len(k.Scopes) == 0 {
		return fmt.Errorf("no scope, want %s, %s or both", Write, Read)
	}
	for _, s := range k.Scopes {
		if s != Write && s != Read {
			return fmt.Errorf("scope %s, want %s or %s", config.Shown(s), Write, Read)
		}
	}
	switch {
	case k.Rate < 0 || k.Rate > maxRate:
		return fmt.Errorf("rate %d, want 1 to %d records/s", k.Rate, maxRate)
	case k.Burst < 0 || k.Burst > maxRate || k.Rate > 0 && k.Burst == 0:
		return fmt.Errorf("burst %d, want 1 to %d records", k.Burst, maxRate)
	case k.Burst > 0 && k.Rate == 0:
		return errors.New("a burst without a rate")
	}
	return nil
}

// isNotOfName reports whether r may not stand in the name of a key.
func isNotOfName(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }

// Set is the keys that a file listed when it was read. It never changes.
type Set struct {
	keys   []*Key
	byHash map[uint64][]*Key // by the first 8 bytes
}

// Parse reads keys, one a line. A line is a name, the SHA-256 of the key in hex, and scopes separated by commas. If
// the key is limited, rate=N (records/s) and burst=N (records; by default as many as rate) follow. Blank lines and
// lines that start with # are passed over. The error names the line.
func Parse(r io.Reader) (*Set, error) {
	s := &Set{byHash: make(map[uint64][]*Key)}
	names := make(map[string]bool)
	lines := bufio.NewScanner(r)
	n := 0
	for lines.Scan() {
		n++
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, err := parseKey(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if names[k.Name] {
			return nil, fmt.Errorf("line %d: a key named %s stands above already", n, k.Name)
		}
		if other := s.find(&k.Hash); other != nil {
			return nil, fmt.Errorf("line %d: the SHA-256 is that of %s above", n, other.Name)
		}
		names[k.Name] = true
		s.keys = append(s.keys, k)
		s.byHash[hashPrefix(&k.Hash)] = append(s.byHash[hashPrefix(&k.Hash)], k)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	return s, nil
}

// parseKey reads a line of the keys file.
func parseKey(line string) (*Key, error) {
	words := strings.Fields(line)
	if len(words) < 3 {
		return nil, fmt.Errorf("%d words, want at least 3: name, SHA-256 in hex, scopes", len(words))
	}
	hash, err := hex.DecodeString(words[1])
	if err != nil || len(hash) != sha256.Size {
		return nil, fmt.Errorf("the second word is not a SHA-256 in hex (%d digits)", 2*sha256.Size)
	}
	k := &Key{Name: words[0], Hash: [sha256.Size]byte(hash), Scopes: strings.Split(words[2], ",")}
	for _, word := range words[3:] {
		name, value, _ := strings.Cut(word, "=")
		var to *int
		switch name {
		case "rate":
			to = &k.Rate
		case "burst":
			to = &k.Burst
		default:
			return nil, fmt.Errorf("%s, want rate=N or burst=N", config.Shown(word))
		}
		if *to != 0 {
			return nil, fmt.Errorf("a second %s", name)
		}
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil || n == 0 || n > maxRate {
			return nil, fmt.Errorf("%s: got %s, takes a whole number from 1 to %d", name, config.Shown(value), maxRate)
		}
		*to = int(n)
	}
	if k.Burst == 0 {
		k.Burst = k.Rate
	}
	if err := k.Validate(); err != nil {
		return nil, err
	}
	k.use, k.gone = new(use), make(chan struct{})
	if k.Rate > 0 {
		k.limit = newLimit(k.Rate, k.Burst)
	}
	return k, nil
}

// Verdict says whether a request is let in, and why not.
type Verdict int

// The verdicts: let in, no key or an unknown one (HTTP 401), a key without the scope (HTTP 403).
const (
	Allowed Verdict = iota
	Unknown
	Forbidden
)

// find returns the key with a hash, nil if there is none. Thousands of keys cost no more than one: the map selects by
// 8 bytes of the hash, and the whole hash is compared in constant time. The timing could tell at most those 8 bytes
// of a hash. Nobody gets from them to the key, which is 130 random bits, and the hash of a guess can't be steered.
func (s *Set) find(hash *[sha256.Size]byte) *Key {
	for _, k := range s.byHash[hashPrefix(hash)] {
		if subtle.ConstantTimeCompare(k.Hash[:], hash[:]) == 1 {
			return k
		}
	}
	return nil
}

// hashPrefix returns the first 8 bytes of a hash.
func hashPrefix(hash *[sha256.Size]byte) uint64 { return binary.LittleEndian.Uint64(hash[:]) }

// All returns the keys in the order of the file. A nil Set has none.
func (s *Set) All() iter.Seq[*Key] {
	if s == nil {
		return func(func(*Key) bool) {}
	}
	return slices.Values(s.keys)
}

// inherit makes s the successor of old. If a key keeps its name, its counts go on, and so does its limit if that is
// the same. inherit returns the keys of old that were revoked, replaced or have other scopes now.
func (s *Set) inherit(old *Set) (ended []*Key) {
	byName := make(map[string]*Key)
	for _, k := range s.keys {
		byName[k.Name] = k
	}
	for _, before := range old.keys {
		k := byName[before.Name]
		if k == nil {
			ended = append(ended, before)
			continue
		}
		k.use = before.use
		if k.Rate == before.Rate && k.Burst == before.Burst {
			k.limit = before.limit
		}
		if k.Hash == before.Hash && slices.Equal(k.Scopes, before.Scopes) {
			k.gone = before.gone
		} else {
			ended = append(ended, before)
		}
	}
	return ended
}

// Gone returns a channel that is closed when the key is revoked, replaced or gets other scopes. A stream that the key
// opened must end then. For a nil Key the channel is nil, which is never closed.
func (k *Key) Gone() <-chan struct{} {
	if k == nil {
		return nil
	}
	return k.gone
}
