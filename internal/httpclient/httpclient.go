// Package httpclient makes HTTP clients that keep to themselves what they are given: keys, passwords, messages.
package httpclient

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"time"
)

// New returns a client whose connections may take connectTime to come about, and that follows no redirect. It also returns its transport,
// which may be changed before the first request.
func New(connectTime time.Duration) (*http.Client, *http.Transport) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: connectTime}).DialContext
	return &http.Client{Transport: transport, CheckRedirect: NoRedirect}, transport
}

// NoRedirect is a client's CheckRedirect that follows none, because it could lead a key or a message to another host. The client's answer
// is that with the redirect.
func NoRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// WithoutURL returns the error of a client's request without the URL, in which a password or a query may stand.
func WithoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
