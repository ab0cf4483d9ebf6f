package searches

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"

	"millrace/internal/httpclient"
	"millrace/internal/retry"
)

const (
	// sendTimeout is how long a receiver may take to answer.
	sendTimeout = 10 * time.Second
	// sendEvery is how often a sender looks for messages when nobody wakes it.
	sendEvery = time.Second
	// longestPause is the longest time between two tries of a message.
	longestPause = 5 * time.Minute
	// giveUpAfter is how long a message is tried.
	giveUpAfter = 24 * time.Hour
)

// newClient returns a client for messages.
func newClient() *http.Client {
	client, transport := httpclient.New(sendTimeout / 2)
	client.Timeout = sendTimeout
	transport.MaxIdleConnsPerHost = senders
	return client
}

// sendAll sends messages until ctx is done.
func (r *Runner) sendAll(ctx context.Context) {
	for {
		sent := true
		var err error
		for sent && err == nil && ctx.Err() == nil {
			f, _ := r.watch.File()
			if f == nil {
				break
			}
			sent, err = r.sendOne(ctx, f)
		}
		select {
		case <-time.After(sendEvery): // an error is the database's; the evaluations tell it
		case <-r.wakeSenders:
		case <-ctx.Done():
			return
		}
	}
}

// message is a message that waits.
type message struct {
	id               int64
	key              string // tells receivers that it comes again
	search, receiver string
	target           int
	repeats          bool
	content          []byte
	tries            int // that failed
	isOld            bool
}

// claimSQL takes the first message that is to be tried now and that no other sender has. Of one search to one place only the first that waits
// is taken. Parameters: the names of the receivers, giveUpAfter in seconds.
const claimSQL = `SELECT id, message::text, search, receiver, target, repeats, content::text, tries, created_at < now() - make_interval(secs => $2)
	FROM millrace_search_messages AS m
	WHERE state = 'waiting' AND next_try <= now() AND receiver = ANY ($1) AND NOT EXISTS (
		SELECT FROM millrace_search_messages AS earlier WHERE earlier.state = 'waiting' AND earlier.search = m.search
			AND earlier.receiver = m.receiver AND earlier.target = m.target AND earlier.id < m.id)
	ORDER BY id LIMIT 1 FOR UPDATE OF m SKIP LOCKED`

// sendOne sends one message, if there is one to send now. sent is false if there is none.
func (r *Runner) sendOne(ctx context.Context, f *File) (sent bool, err error) {
	names := make([]string, len(f.Receivers))
	for i, receiver := range f.Receivers {
		names[i] = receiver.Name
	}
	if len(names) == 0 {
		return false, nil
	}
	tx, err := r.db.BeginTx(ctx, pgx.TxOptions{BeginQuery: beginSQL})
	if err != nil {
		return false, err
	}
	defer rollback(ctx, tx)
	var m message
	err = tx.QueryRow(ctx, claimSQL, names, int(giveUpAfter/time.Second)).
		Scan(&m.id, &m.key, &m.search, &m.receiver, &m.target, &m.repeats, &m.content, &m.tries, &m.isOld)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	failure := r.post(ctx, f, &m)
	if ctx.Err() != nil {
		return false, ctx.Err() // whether it was received is not known: it is tried again
	}
	result := sentOff
	var refused *refusal
	switch {
	case failure == nil && m.repeats:
		_, err = tx.Exec(ctx, "DELETE FROM millrace_search_messages WHERE id = $1", m.id)
	case failure == nil:
		_, err = tx.Exec(ctx, "UPDATE millrace_search_messages SET state = 'sent', state_at = now(), tries = tries + 1, failure = NULL, content = NULL WHERE id = $1", m.id)
	case m.isOld || m.repeats && m.tries > 0 || errors.As(failure, &refused) && refused.isFinal:
		result = givenUp
		_, err = tx.Exec(ctx, "UPDATE millrace_search_messages SET state = 'given up', state_at = now(), tries = tries + 1, failure = $2, content = NULL WHERE id = $1", m.id, failure.Error())
	default:
		result = sendFailed
		_, err = tx.Exec(ctx, `UPDATE millrace_search_messages SET tries = tries + 1, failure = $2, state_at = now(), next_try = now() + make_interval(secs => $3) WHERE id = $1`,
			m.id, failure.Error(), pauseAfter(m.tries).Seconds())
	}
	if err == nil {
		err = tx.Commit(ctx)
	}
	if err != nil {
		return false, err
	}
	r.metrics.messages.WithLabelValues(m.receiver, result).Inc()
	switch result {
	case sentOff:
		if !m.repeats {
			r.log.Info("told", "search", m.search, "receiver", m.receiver, "message", m.key)
		}
	case sendFailed:
		r.log.Warn("a message could not be sent; it is tried again", "search", m.search, "receiver", m.receiver, "message", m.key, "tries", m.tries+1, "error", failure)
	default:
		r.log.Error("a message is given up", "search", m.search, "receiver", m.receiver, "message", m.key, "tries", m.tries+1, "error", failure)
	}
	return true, nil
}

// What came of a try, as metrics have it.
const (
	sentOff    = "sent"
	sendFailed = "failed"
	givenUp    = "given up"
)

// pauseAfter returns how long to wait after a try that failed. tries is how many failed before.
func pauseAfter(tries int) time.Duration {
	b := retry.NewBackoff()
	b.InitialInterval, b.MaxInterval = 500*time.Millisecond, longestPause
	b.Multiplier = 2
	pause := b.NextBackOff()
	for range min(tries, 20) {
		pause = b.NextBackOff()
	}
	return pause
}

// refusal is an answer that is no success.
type refusal struct {
	status  string
	text    string // the beginning of the body
	isFinal bool   // the same message will be refused again
}

func (r *refusal) Error() string {
	if r.text == "" {
		return "the answer is " + r.status
	}
	return "the answer is " + r.status + ": " + r.text
}

// post sends a message. Its error tells nothing of the URL.
func (r *Runner) post(ctx context.Context, f *File, m *message) error {
	receiver := f.receiver(m.receiver)
	targets := receiver.targets()
	if m.target >= len(targets) {
		return &refusal{status: "none: the receiver has fewer URLs now", isFinal: true}
	}
	var n notice
	if err := json.Unmarshal(m.content, &n); err != nil {
		return fmt.Errorf("the message can't be read: %w", err)
	}
	target, now := string(targets[m.target]), time.Now()
	var body []byte
	var err error
	if receiver.Alertmanagers != nil {
		target += "/api/v2/alerts"
		body, err = n.alertsBody(now)
	} else {
		body, err = n.webhookBody(m.key)
	}
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL is none that can be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "millrace")
	if receiver.Alertmanagers == nil {
		req.Header.Set("X-Millrace-Message", m.key)
		if receiver.Secret != "" {
			req.Header.Set("X-Millrace-Signature", signature(receiver.Secret, now, body))
		}
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return httpclient.WithoutURL(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // the status tells enough
	if resp.StatusCode/100 == 2 {
		return nil
	}
	told := &refusal{status: printable(resp.Status), text: printable(cut(strings.TrimSpace(string(text))))}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
	default:
		told.isFinal = resp.StatusCode/100 == 4 || resp.StatusCode/100 == 3
	}
	return told
}

// printable returns a text without what a terminal could take for a command.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}
