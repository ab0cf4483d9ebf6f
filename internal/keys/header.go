package keys

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"slices"
)

// Challenge is the value of WWW-Authenticate in a 401 to clients that may send a key in any of the forms that Check takes. curl
// and others send Basic only after they have seen it.
const Challenge = `Basic realm="millrace", Bearer`

// Header is a request's header.
type Header interface {
	// Peek returns the first value of a field, nil if there is none. The name is in its canonical form.
	Peek(name string) []byte
}

// keyHeaders are the fields that hold a key and nothing else. Shippers of other systems send the last two.
var keyHeaders = [...]string{"X-Api-Key", "Dd-Api-Key", "X-Amz-Firehose-Access-Key"}

// maxCredentials is the most bytes of base64 that are decoded. A key that New made has 29 bytes.
const maxCredentials = 1 << 10

// Check returns the key of a request, nil if it is not known, and whether it has the scope. The first of these that is a known key
// counts, since a proxy or a shipper may fill a second one with something else:
//
//   - Authorization, with the scheme Bearer or Splunk and the key.
//   - Authorization: ApiKey, with the key, or as Elasticsearch's clients send it: base64 of an id, a colon and the key.
//   - Authorization: Basic, whose password is the key, or the user if the password is empty.
//   - X-API-Key, DD-API-KEY, X-Amz-Firehose-Access-Key.
//
// Check allocates nothing. A key in a query string does not count, because query strings are logged.
func (s *Set) Check(h Header, scope string) (*Key, Verdict) {
	k := s.authorized(h.Peek("Authorization"))
	for i := 0; k == nil && i < len(keyHeaders); i++ {
		k = s.ofSecret(h.Peek(keyHeaders[i]))
	}
	switch {
	case k == nil:
		return nil, Unknown
	case !slices.Contains(k.Scopes, scope):
		return k, Forbidden
	}
	return k, Allowed
}

// authorized returns the key in the header Authorization, nil if there is none that is known. A scheme's name may be in any case.
func (s *Set) authorized(authorization []byte) *Key {
	scheme, credentials, ok := bytes.Cut(authorization, []byte(" "))
	if !ok {
		return nil
	}
	credentials = bytes.TrimSpace(credentials)
	var decoded [maxCredentials / 4 * 3]byte
	switch {
	case bytes.EqualFold(scheme, []byte("Bearer")), bytes.EqualFold(scheme, []byte("Splunk")):
		return s.ofSecret(credentials)
	case bytes.EqualFold(scheme, []byte("ApiKey")):
		if k := s.ofSecret(credentials); k != nil {
			return k
		}
		_, secret, _ := bytes.Cut(decode(&decoded, credentials), []byte(":"))
		return s.ofSecret(secret)
	case bytes.EqualFold(scheme, []byte("Basic")):
		user, password, _ := bytes.Cut(decode(&decoded, credentials), []byte(":"))
		if len(password) == 0 {
			password = user
		}
		return s.ofSecret(password)
	}
	return nil
}

// decode decodes base64, with or without padding, into buf. It returns nil for what is not base64, or too long.
func decode(buf *[maxCredentials / 4 * 3]byte, text []byte) []byte {
	text = bytes.TrimRight(text, "=")
	if len(text) > maxCredentials {
		return nil
	}
	n, err := base64.RawStdEncoding.Decode(buf[:], text)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// ofSecret returns the key that a client sent, nil if it is not known.
func (s *Set) ofSecret(secret []byte) *Key {
	if len(secret) == 0 {
		return nil
	}
	hash := sha256.Sum256(secret)
	return s.find(&hash)
}
