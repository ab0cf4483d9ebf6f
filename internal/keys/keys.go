// Package keys holds the API keys: how one is made, the file that lists them, and whether a request carries
// one. Only a key's SHA-256 is ever stored. It starts no goroutine.
package keys

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Scopes that a key may have.
const (
	Write = "write" // POST /log, POST /log/batch
	Read  = "read"  // everything that the query service answers
)

// Key is a line of the keys file.
type Key struct {
	Name   string
	Hash   [sha256.Size]byte
	Scopes []string
}

// New makes a key with 130 bits of randomness. secret is what the client sends; it is not kept.
func New(name string, scopes []string) (k Key, secret string, err error) {
	if name == "" || strings.ContainsAny(name, " \t\r\n#") {
		return k, "", fmt.Errorf("key name %q: want a word without white space or #", name)
	}
	if err := checkScopes(scopes); err != nil {
		return k, "", err
	}
	secret = "mr_" + rand.Text()
	return Key{Name: name, Hash: sha256.Sum256([]byte(secret)), Scopes: scopes}, secret, nil
}

// String is the key's line in the file: name, SHA-256 in hex, scopes.
func (k Key) String() string {
	return k.Name + " " + hex.EncodeToString(k.Hash[:]) + " " + strings.Join(k.Scopes, ",")
}

// Set is the keys of a file. A nil Set lets everybody in. It never changes, so many goroutines may use it.
type Set struct {
	keys []Key
}

// Load reads a keys file; an empty name gives a nil Set.
func Load(name string) (*Set, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("KEYS_FILE: %w", err)
	}
	defer f.Close() // only read
	s, err := Parse(f)
	if err != nil {
		return nil, fmt.Errorf("KEYS_FILE %s: %w", name, err)
	}
	return s, nil
}

// Parse reads keys, one a line: a name, the SHA-256 of the key in hex and scopes separated by commas. Blank
// lines and lines that start with # are passed over. The error names the line.
func Parse(r io.Reader) (*Set, error) {
	s := new(Set)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, err := parseKey(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if slices.ContainsFunc(s.keys, func(other Key) bool { return other.Name == k.Name }) {
			return nil, fmt.Errorf("line %d: a key named %s stands above already", n, k.Name)
		}
		s.keys = append(s.keys, k)
	}
	return s, lines.Err()
}

func parseKey(line string) (k Key, err error) {
	fields := strings.Fields(line)
	if len(fields) != 3 {
		return k, fmt.Errorf("%d words, want 3: name, SHA-256 in hex, scopes", len(fields))
	}
	hash, err := hex.DecodeString(fields[1])
	if err != nil || len(hash) != sha256.Size {
		return k, fmt.Errorf("the second word is not a SHA-256 in hex (%d digits)", 2*sha256.Size)
	}
	k = Key{Name: fields[0], Hash: [sha256.Size]byte(hash), Scopes: strings.Split(fields[2], ",")}
	return k, checkScopes(k.Scopes)
}

func checkScopes(scopes []string) error {
	if len(scopes) == 0 {
		return fmt.Errorf("no scope, want %s, %s or both", Write, Read)
	}
	for _, s := range scopes {
		if s != Write && s != Read {
			return fmt.Errorf("scope %q, want %s or %s", s, Write, Read)
		}
	}
	return nil
}

// Verdict is what a Set says about a request.
type Verdict int

// The verdicts: let in, no key or an unknown one (HTTP 401), a key without the scope (HTTP 403).
const (
	Allowed Verdict = iota
	Unknown
	Forbidden
)

// Check looks for the key in the values of the headers Authorization ("Bearer KEY") and X-API-Key, and for
// the scope on it. Every key of the file is compared, in constant time each.
func (s *Set) Check(authorization, apiKey, scope string) Verdict {
	if s == nil {
		return Allowed
	}
	secret := apiKey
	if scheme, token, ok := strings.Cut(authorization, " "); ok && strings.EqualFold(scheme, "Bearer") {
		secret = strings.TrimSpace(token)
	}
	hash := sha256.Sum256([]byte(secret))
	verdict := Unknown
	for _, k := range s.keys {
		if subtle.ConstantTimeCompare(k.Hash[:], hash[:]) == 1 {
			verdict = Forbidden
			if slices.Contains(k.Scopes, scope) {
				verdict = Allowed
			}
		}
	}
	return verdict
}
