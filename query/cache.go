package query

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
	"golang.org/x/sync/singleflight"

	"millrace/internal/config"
)

// What the cache did for an answer: the header X-Cache, and a label.
const (
	hit    = "hit"
	miss   = "miss"
	bypass = "bypass" // no cache, an open window, or Redis is out of order
)

const (
	// cachePrefix begins every key. Its number is the form of the answers: another form, another number.
	cachePrefix = "millrace:query:3:"
	// cacheTimeout bounds each exchange with Redis. A healthy Redis takes less than a millisecond, and the cache saves seconds.
	cacheTimeout = 200 * time.Millisecond
	// cachePause is how long Redis is left alone after a failure. So a dead Redis costs cacheTimeout once a second.
	cachePause = time.Second
	// cacheMaxBytes is the largest answer that is kept: 1000 records of a usual size are a third of it.
	cacheMaxBytes = 1 << 20
)

// cache keeps answers about closed windows in Redis. Requests for the same answer share one flight, which computes it. Many
// goroutines may use it at once.
type cache struct {
	redis      *redis.Client // nil: no cache
	ttl        time.Duration
	flightTime time.Duration // the longest that a flight may take
	log        *slog.Logger

	work    context.Context // of flights, which outlive the request that began them
	working *sync.WaitGroup // the goroutines that wait for a flight
	flights singleflight.Group

	pausedUntil atomic.Int64 // Unix nanoseconds
	failing     atomic.Bool
}

// newCache returns a cache that has not connected yet.
func newCache(work context.Context, working *sync.WaitGroup, conf Config, log *slog.Logger) (*cache, error) {
	c := &cache{ttl: conf.CacheTTL, flightTime: conf.Timeout + storeSlack + 2*cacheTimeout, log: log, work: work, working: working}
	if conf.Redis == "" {
		return c, nil
	}
	o, err := config.Parse(conf.Redis, redis.ParseURL)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", err)
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = cacheTimeout, cacheTimeout, cacheTimeout, cacheTimeout
	o.MaxRetries, o.DialerRetries = -1, 1 // none: the database is the second try
	o.ContextTimeoutEnabled = true
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	logging.Disable() // the client would write lines of its own to standard error; noteFailure and noteSuccess tell of an outage
	c.redis = redis.NewClient(o)
	return c, nil
}

// close closes the connections to Redis.
func (c *cache) close() {
	if c.redis != nil {
		if err := c.redis.Close(); err != nil {
			c.log.Warn("redis: close", "error", err)
		}
	}
}

// cacheKey returns the key of an answer, made of everything that the answer depends on.
func cacheKey(route string, q *search, g generation) string {
	after := ""
	if q.after != nil {
		after = fmt.Sprint(q.after.at.UnixMicro(), q.after.id, q.after.given)
	}
	h := sha256.New()
	// The answer holds a cursor, and the cursor depends on the text of the bounds. %q keeps the parts apart.
	fmt.Fprintf(h, "%s %d %d %d %t %d %d %s %q %q %q %d %t %s %q", route, g.schema, g.created.UnixMicro(), g.late, g.files,
		q.from, q.to, q.clock, q.fromText, q.toText, q.filter.String(), q.limit, q.ascending, after, q.groupBy)
	return cachePrefix + hex.EncodeToString(h.Sum(nil))
}

// getOrCompute returns what Redis has under key. If it has nothing, getOrCompute returns what compute returns, and keeps that
// in Redis. All who ask for the same key at once share one flight. If the ctx of one of them ends, the others still get the answer.
func (c *cache) getOrCompute(ctx context.Context, key string, compute func(context.Context) ([]byte, error)) (body []byte, result string, err error) {
	type answer struct {
		body   []byte
		result string
	}
	v, err := c.share(ctx, key, func(ctx context.Context) (any, error) {
		body, result := c.get(ctx, key)
		if result != hit {
			var err error
			if body, err = compute(ctx); err != nil {
				return nil, err
			}
			c.set(ctx, key, body)
		}
		return answer{body, result}, nil
	})
	if err != nil {
		return nil, bypass, err
	}
	a := v.(answer)
	return a.body, a.result, nil
}

// getOrTry does what getOrCompute does for an answer within a budget: it keeps only what is complete, and each who asks has a budget of his
// own.
func (c *cache) getOrTry(ctx context.Context, key string, compute func(context.Context) ([]byte, error)) (body []byte, result string, err error) {
	if body, result = c.get(ctx, key); result == hit {
		return body, result, nil
	}
	if body, err = compute(ctx); err == nil && bytes.HasSuffix(body, []byte(`"complete":true}`+"\n")) {
		c.set(ctx, key, body)
	}
	return body, result, err
}

// share returns what f returns, and calls f once for all who ask for the same key at once. If the ctx of one of them ends, f goes
// on for the others. Nobody may change what f returned.
func (c *cache) share(ctx context.Context, key string, f func(context.Context) (any, error)) (any, error) {
	type outcome struct {
		v   any
		err error
	}
	landed := make(chan outcome, 1) // buffered, so that the sender ends if nobody waits any more
	c.working.Go(func() {
		v, err, _ := c.flights.Do(key, func() (v any, err error) {
			// No handler catches a panic of this goroutine.
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				}
			}()
			ctx, cancel := context.WithTimeout(c.work, c.flightTime)
			defer cancel()
			return f(ctx)
		})
		landed <- outcome{v, err}
	})
	select {
	case o := <-landed:
		return o.v, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// getMany returns what Redis has under each key, an empty text where it has nothing. The result is hit if it has all of them, miss
// if not, or bypass if Redis can't be asked.
func (c *cache) getMany(ctx context.Context, keys []string) (texts []string, result string) {
	texts = make([]string, len(keys))
	if c.isPaused() {
		return texts, bypass
	}
	found, err := c.redis.MGet(ctx, keys...).Result()
	if err != nil {
		c.noteFailure(ctx, err)
		return texts, bypass
	}
	c.noteSuccess()
	result = hit
	for i, v := range found {
		text, ok := v.(string)
		if !ok {
			result = miss
		}
		texts[i] = text
	}
	return texts, result
}

// setMany keeps each bucket under its key.
func (c *cache) setMany(ctx context.Context, keys []string, buckets []*bucket) {
	if c.isPaused() {
		return
	}
	_, err := c.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, key := range keys {
			b, err := json.Marshal(buckets[i])
			if err != nil {
				return err
			}
			p.Set(ctx, key, b, c.ttl)
		}
		return nil
	})
	if err != nil {
		c.noteFailure(ctx, err)
	}
}

// get returns what Redis has under a key. The result is hit, miss, or bypass if Redis can't be asked.
func (c *cache) get(ctx context.Context, key string) ([]byte, string) {
	if c.isPaused() {
		return nil, bypass
	}
	body, err := c.redis.Get(ctx, key).Bytes()
	switch {
	case err == nil:
		c.noteSuccess()
		return body, hit
	case errors.Is(err, redis.Nil):
		c.noteSuccess()
		return nil, miss
	}
	c.noteFailure(ctx, err)
	return nil, bypass
}

// set keeps an answer under a key, unless it is too large.
func (c *cache) set(ctx context.Context, key string, body []byte) {
	if c.isPaused() || len(body) > cacheMaxBytes {
		return
	}
	if err := c.redis.Set(ctx, key, body, c.ttl).Err(); err != nil {
		c.noteFailure(ctx, err)
	}
}

// isPaused reports whether Redis is left alone after a failure.
func (c *cache) isPaused() bool { return time.Now().UnixNano() < c.pausedUntil.Load() }

// noteFailure pauses the use of Redis, and logs the first failure of an outage.
func (c *cache) noteFailure(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // the caller gave up: Redis may be well
	}
	c.pausedUntil.Store(time.Now().Add(cachePause).UnixNano())
	if !c.failing.Swap(true) {
		c.log.Warn("redis can't be used; answers come from the database", "error", err)
	}
}

// noteSuccess logs the end of an outage.
func (c *cache) noteSuccess() {
	if c.failing.Load() && c.failing.Swap(false) {
		c.log.Info("redis is there again")
	}
}
