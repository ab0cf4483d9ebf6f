package send

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	neturl "net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"

	"millrace/internal/config"
	"millrace/internal/httpclient"
)

const (
	// connectTime is how long a connection may take to come about.
	connectTime = 10 * time.Second
	// answerTime is how long a request may take with its answer. The API waits 15 seconds at most for RabbitMQ.
	answerTime = time.Minute
	// maxAnswer bounds an answer's bytes; a hundred errors have some 20 KiB.
	maxAnswer = 1 << 20
	// longestWait bounds what Retry-After may ask for.
	longestWait = 5 * time.Minute
	// maxKeyAge is how old a key may become before its block gets another one, if it can't have been stored, or is given up. The API takes keys for 24 hours.
	maxKeyAge = 24*time.Hour - 10*time.Minute
)

// answer is what the API says of a batch.
type answer struct {
	Accepted *int `json:"accepted"`
	Rejected *int `json:"rejected"`
	Errors   []struct {
		Index int    `json:"index"`
		Error string `json:"error"`
	} `json:"errors"`
	Error string `json:"error"`
}

// laterError is a failure after which the same request may succeed.
type laterError struct {
	error
	wait   time.Duration // how long the API wants the client to wait at least
	unsent bool          // the request can't have reached an API
}

// stopError is an answer after which nothing more is sent.
type stopError struct{ error }

var (
	// errTooLarge says that a body is too large, for the API or for a proxy.
	errTooLarge = errors.New("the body is too large")
	// errKeyExpired says that the API no longer takes the key.
	errKeyExpired = errors.New("the key is older than 24 hours")
)

// client posts batches. Many goroutines may use it at once.
type client struct {
	url     config.APIURL
	key     config.APIKey
	target  string
	fields  string
	agent   string
	encoder *zstd.Encoder // nil: bodies are not compressed
	http    *http.Client
}

// newClient returns a client of an API.
func newClient(c Config) (*client, error) {
	u, err := neturl.Parse(strings.TrimRight(string(c.URL), "/") + "/log/batch")
	if err != nil {
		return nil, errors.New("API_URL: takes " + c.URL.Takes())
	}
	httpClient, transport := httpclient.New(connectTime)
	httpClient.Timeout = answerTime
	transport.MaxIdleConnsPerHost = c.Parallel
	if transport.TLSClientConfig == nil {
		transport.TLSClientConfig = new(tls.Config)
	}
	transport.TLSClientConfig.MinVersion = tls.VersionTLS12
	out := &client{url: c.URL, key: c.Key, target: u.String(), fields: c.Fields, agent: c.Agent, http: httpClient}
	if c.Compress {
		out.encoder, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(c.Parallel), zstd.WithLowerEncoderMem(true))
	}
	return out, err
}

func (c *client) close() { c.http.CloseIdleConnections() }

// post sends a body once. It returns the API's answer about its records, whose counts are set and add up to count.
func (c *client) post(ctx context.Context, body []byte, key uuid.UUID, count int) (*answer, error) {
	encoding := ""
	if c.encoder != nil {
		body, encoding = c.encoder.EncodeAll(body, make([]byte, 0, len(body)/4)), "zstd"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.target, bytes.NewReader(body))
	if err != nil {
		return nil, stopError{errors.New("API_URL: takes " + c.url.Takes())}
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Idempotency-Key", key.String())
	req.Header.Set("User-Agent", c.agent)
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	if c.fields != "" {
		req.Header.Set("X-Fields", c.fields)
	}
	if c.key != "" {
		req.Header.Set("X-API-Key", string(c.key)) // Authorization may be that of the URL's user
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unanswered(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, c.unanswered(err)
	}
	var a answer
	isOurs := json.Unmarshal(text, &a) == nil
	counted := isOurs && a.Accepted != nil && a.Rejected != nil && *a.Accepted >= 0 && *a.Rejected >= 0
	switch status := resp.StatusCode; {
	case (status == 200 || status == 202 || status == 207 || status == 400) && counted && *a.Accepted+*a.Rejected == count:
		return &a, nil
	case status/100 == 2:
		return nil, stopError{fmt.Errorf("%s is no Millrace API: its answer to a batch can't be read", c.url)}
	case status/100 == 3:
		return nil, stopError{fmt.Errorf("%s answers with a redirect, which is not followed: set API_URL to where the API is", c.url)}
	case status == http.StatusRequestEntityTooLarge:
		return nil, errTooLarge
	case status == http.StatusBadRequest && strings.Contains(a.Error, "Idempotency-Key") && strings.Contains(a.Error, "at most 24 h ago"):
		return nil, errKeyExpired
	case status == http.StatusUnauthorized && c.key == "":
		return nil, stopError{fmt.Errorf("%s wants an API key with the scope write: set API_KEY", c.url)}
	case status == http.StatusUnauthorized:
		return nil, stopError{fmt.Errorf("%s does not take the key in API_KEY", c.url)}
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		later := laterError{error: fmt.Errorf("%s answers %s", c.url, c.reason(resp, a))}
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
			later.wait = min(time.Duration(min(seconds, 1<<20))*time.Second, longestWait)
		}
		return nil, later
	default:
		return nil, stopError{fmt.Errorf("%s answers %s", c.url, c.reason(resp, a))}
	}
}

// reason returns a status with what the API says about it.
func (c *client) reason(resp *http.Response, a answer) string {
	if a.Error != "" {
		return strconv.Itoa(resp.StatusCode) + ": " + a.Error
	}
	return resp.Status
}

// unanswered returns the error of a request without an answer. It repeats neither the URL's user nor its query.
func (c *client) unanswered(err error) error {
	err = httpclient.WithoutURL(err)
	var op *net.OpError
	unsent := errors.As(err, &op) && op.Op == "dial"
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return stopError{fmt.Errorf("%s: %w (SSL_CERT_FILE names the certificates that are trusted)", c.url, err)}
	}
	return laterError{error: fmt.Errorf("%s: %w", c.url, err), unsent: unsent}
}
