package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	neturl "net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"millrace/internal/config"
	"millrace/internal/httpclient"
	"millrace/internal/retry"
)

const (
	// connectTime is how long a connection may take to come about.
	connectTime = 10 * time.Second
	// answerTime is how long an answer may take beyond the budget that the service has for it.
	answerTime = time.Minute
	// maxAnswer bounds an answer's bytes. The service ends a page once it has 4 MiB, after any record.
	maxAnswer = 256 << 20
	// tries is how often a request is made that the service has no room for.
	tries = 4
)

// clientSettings are the settings of the commands that ask a query service.
type clientSettings struct {
	URL config.QueryURL `env:"QUERY_URL" envDefault:"http://localhost:8081" help:"The query service that is asked."`
	Key config.APIKey   `env:"API_KEY" help:"The key that it wants, with the scope read; empty: none is shown."`
}

// queryClient asks a query service over HTTP.
type queryClient struct {
	settings   clientSettings
	http       *http.Client
	answerTime time.Duration
}

// newQueryClient returns a client with the settings of the environment.
func newQueryClient() (*queryClient, error) {
	c := &queryClient{answerTime: answerTime}
	if err := config.Load(&c.settings); err != nil {
		return nil, err
	}
	c.http, _ = httpclient.New(connectTime)
	return c, nil
}

// answerError is an answer that is not the one that was asked for.
type answerError struct {
	status  int    // 0 if the answer is none of the query service's
	message string // fit for a terminal
	wait    time.Duration
}

func (e *answerError) Error() string { return e.message }

// isPassing reports whether a request that failed with err may succeed later.
func isPassing(err error) bool {
	var answer *answerError
	if errors.As(err, &answer) {
		switch answer.status {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	return true
}

// open sends a request and returns its answer, which is 200 and has one of the media types. The caller closes its body.
func (c *queryClient) open(ctx context.Context, path string, parameters neturl.Values, header http.Header, mediaType string) (*http.Response, error) {
	target := strings.TrimRight(string(c.settings.URL), "/") + path
	if len(parameters) > 0 {
		target += "?" + parameters.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, errors.New("QUERY_URL: takes " + c.settings.URL.Takes())
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", mediaType)
	req.Header.Set("User-Agent", "millrace/"+version)
	if c.settings.Key != "" {
		req.Header.Set("X-API-Key", string(c.settings.Key)) // Authorization may be that of the URL's user
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, c.refusal(resp)
	}
	if got, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); got != mediaType {
		_ = resp.Body.Close()
		return nil, &answerError{message: fmt.Sprintf("%s is no query service: its answer is %s", c.settings.URL, printable(cmp.Or(got, "of no type")))}
	}
	return resp, nil
}

// unreachable returns the error of a request without an answer. It repeats neither the URL's user nor the query.
func (c *queryClient) unreachable(err error) error {
	err = httpclient.WithoutURL(err)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: no answer came in time", c.settings.URL)
	}
	return fmt.Errorf("%s: %w", c.settings.URL, err)
}

// refusal returns the error for an answer that is not 200.
func (c *queryClient) refusal(resp *http.Response) error {
	e := &answerError{status: resp.StatusCode}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // the reason, as far as it came
	var answer struct {
		Error string `json:"error"`
	}
	isOurs := json.Unmarshal(body, &answer) == nil && answer.Error != ""
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds >= 0 {
		e.wait = min(time.Duration(seconds), 30) * time.Second
	}
	switch {
	case resp.StatusCode/100 == 3:
		to := ""
		if u, err := resp.Location(); err == nil {
			to = " to " + printable(withoutUser(u))
		}
		e.message = fmt.Sprintf("%s answers with a redirect%s, which is not followed: set QUERY_URL to where the query service is", c.settings.URL, to)
	case resp.StatusCode == http.StatusUnauthorized && c.settings.Key == "":
		e.message = fmt.Sprintf("%s wants an API key: set API_KEY", c.settings.URL)
	case resp.StatusCode == http.StatusUnauthorized:
		e.message = fmt.Sprintf("%s does not take the key in API_KEY", c.settings.URL)
	case isOurs:
		e.message = printable(answer.Error)
	default: // of a proxy, or of another service
		e.message = fmt.Sprintf("%s answers %s", c.settings.URL, printable(resp.Status))
	}
	return e
}

// get fetches a JSON answer into dst. If the service has no room for the request, it is made again.
func (c *queryClient) get(ctx context.Context, path string, parameters neturl.Values, budget time.Duration, dst any) error {
	for try := 1; ; try++ {
		err := c.getOnce(ctx, path, parameters, budget, dst)
		var answer *answerError
		if !errors.As(err, &answer) || answer.status != http.StatusTooManyRequests && answer.status != http.StatusServiceUnavailable || try == tries {
			return err
		}
		if retry.Sleep(ctx, max(answer.wait, 100*time.Millisecond)) != nil {
			return err
		}
	}
}

// getOnce fetches a JSON answer into dst.
func (c *queryClient) getOnce(ctx context.Context, path string, parameters neturl.Values, budget time.Duration, dst any) error {
	ctx, cancel := context.WithTimeout(ctx, budget+c.answerTime)
	defer cancel()
	resp, err := c.open(ctx, path, parameters, nil, "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.unreachable(err)
	}
	if len(body) > maxAnswer {
		return fmt.Errorf("%s: an answer has more than %d MiB", c.settings.URL, maxAnswer>>20)
	}
	if json.Unmarshal(body, dst) != nil {
		return &answerError{message: fmt.Sprintf("%s is no query service: its answer can't be read", c.settings.URL)}
	}
	return nil
}

// logRecord is a record as the service answers it. line is the same as one line of JSON.
type logRecord struct {
	ID         string          `json:"id"`
	Time       time.Time       `json:"time"`
	InsertedAt time.Time       `json:"inserted_at"`
	Data       json.RawMessage `json:"data"`

	line []byte
}

// UnmarshalJSON reads a record and keeps its text.
func (r *logRecord) UnmarshalJSON(text []byte) error {
	type plain logRecord
	if err := json.Unmarshal(text, (*plain)(r)); err != nil {
		return err
	}
	if r.ID == "" || len(r.Data) == 0 {
		return errors.New("not a record")
	}
	var line bytes.Buffer
	if err := json.Compact(&line, text); err != nil {
		return err
	}
	r.line = line.Bytes()
	return nil
}

// logsPage is the answer to GET /logs.
type logsPage struct {
	Logs       []*logRecord `json:"logs"`
	Next       string       `json:"next"`
	SearchedTo string       `json:"searched_to"`
	Complete   bool         `json:"complete"`
	Hints      []struct {
		Text string `json:"text"`
		Q    string `json:"q"`
	} `json:"hints"`
}

// searchError is the error for a search, or a send, that failed. Like grep's, it ends the process with status 2.
type searchError struct{ error }

// faultPlace is the end of the service's refusals of a query: the place of the fault in it, counted in characters from 1.
var faultPlace = regexp.MustCompile(`(?s)^(q|by|calc|having): .* at ([0-9]+)\)?$`)

// searchFailed returns the error to end with. Below a fault in the query it shows the query with a mark.
func searchFailed(err error, q string) error {
	if err == nil {
		return nil
	}
	var answer *answerError
	if !errors.As(err, &answer) {
		return searchError{err}
	}
	m := faultPlace.FindStringSubmatch(answer.message)
	if m == nil || m[1] != "q" {
		return searchError{err}
	}
	at, _ := strconv.Atoi(m[2])
	characters := []rune(q)
	if at < 1 || at > len(characters)+1 {
		return searchError{err}
	}
	const around = 60 // characters of the query that are shown before and after the place
	first, last := max(0, at-1-around), min(len(characters), at-1+around)
	before, behind := printable(string(characters[first:at-1])), printable(string(characters[at-1:last]))
	return searchError{fmt.Errorf("%w\n  %s%s\n  %s^", err, before, behind, strings.Repeat(" ", width(before)))}
}
