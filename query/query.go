package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"millrace/internal/archive"
	"millrace/internal/keys"
	"millrace/internal/service"
	"millrace/query/searches"
	"millrace/query/tail"
)

// Run serves queries until ctx is done, then lets requests under way finish for at most ShutdownTimeout. It starts even if the
// database or Redis can't be reached. Without the database it can't answer queries, and /ready says so. Run returns nil after an
// ordered stop.
func Run(ctx context.Context, c Config) error {
	log := service.Logger(c.Log, c.Process, "query")
	if err := c.Validate(); err != nil {
		return err
	}
	allowed, err := keys.Open(c.KeysFile)
	if err != nil {
		return err
	}

	// work is the context of what outlives the request that began it: shared answers, the tail, the watch over the database.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var working sync.WaitGroup

	origins, err := parseOrigins(c.Origins)
	if err != nil {
		return err
	}
	places := make(chan struct{}, placesPerConnection*c.Connections)
	store, err := newStore(c)
	if err != nil {
		return err
	}
	defer store.close()
	if err := store.checkArchive(ctx, log); err != nil {
		return err
	}
	cache, err := newCache(work, &working, c, log)
	if err != nil {
		return err
	}
	defer cache.close()
	defer working.Wait()
	defer stopWork() // before the wait

	ln, closeProfiles, err := service.Open("QUERY_ADDR", c.Addr, c.Access, c.Process, log)
	if err != nil {
		return err
	}
	defer closeProfiles()
	var ready service.Ready
	ready.Set(databaseCondition, notReached)
	distributed := new(atomic.Bool)
	working.Go(func() { watch(work, c.Postgres, &ready, distributed, log) })
	// serving is done SHUTDOWN_DELAY after ctx: meanwhile load balancers see that /ready fails, and requests are still taken.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	working.Go(func() {
		select {
		case <-ctx.Done():
		case <-work.Done():
			return
		}
		ready.Set("service", "shutting down")
		select {
		case <-time.After(c.ShutdownDelay):
		case <-work.Done():
		}
		stopServing()
	})

	m := newMetrics(places, &ready)
	if store.files != nil {
		store.files.failed = func(err error) {
			m.archiveFailures.Inc()
			log.Error("the archive can't be read", "error", err)
		}
		working.Go(func() { archive.Watch(work, store.files.store, m.archiveAway, log) })
	}
	follow := tail.New(tail.Options{
		Connect: store.connect, Read: store.read, Encode: encodeEvent, MaxFollowers: c.Followers, Followers: m.followers, Missed: m.missed, Log: log,
	})
	working.Go(func() { follow.Run(work) })
	s := &server{
		store: store, cache: cache, tail: follow, maxFollowers: c.Followers, distributed: distributed, keys: allowed, origins: origins, metrics: m, log: log, places: places,
		compressor:  newCompressor(),
		exports:     make(chan struct{}, max(1, c.Connections/4)),
		requestTime: c.Timeout + storeSlack + writeTime,
		timeText:    fmt.Sprint(c.Timeout),
		stopping:    serving, working: &working, exportTimeout: c.ExportTime,
	}
	watched := searches.Open(c.Searches, searchTerms{}, log)
	if watched != nil {
		db, err := searches.Connect(cmp.Or(c.SearchesPostgres, c.Postgres))
		if err != nil {
			return errors.Join(fmt.Errorf("SEARCHES_POSTGRES_URL: %w", err), ln.Close())
		}
		s.sharing = &sharing{store: store, watch: watched, ready: &ready, distributed: distributed, log: log, shared: m.shared, pause: leastPause, begun: time.Now()}
		s.searches = searches.NewRunner(watched, db, s, log)
		counter := &matchCounter{watch: watched, tail: follow, ready: &ready, distributed: distributed, matches: m.matches, log: log}
		working.Go(func() { watched.Run(work) })
		working.Go(func() { s.sharing.run(work) })
		working.Go(func() { s.searches.Run(work) })
		working.Go(func() { counter.run(work) })
	}
	if err := errors.Join(watched.Register(s.metrics.registry), s.searches.Register(s.metrics.registry),
		allowed.Register(s.metrics.registry), service.RegisterCertificate(s.metrics.registry, c.Access)); err != nil {
		return errors.Join(err, ln.Close())
	}
	reports := http.NewServeMux()
	service.Handle(reports, &ready, s.metrics.registry)
	closeMetrics, err := service.ServeMetrics("QUERY_METRICS_ADDR", c.MetricsAddr, c.Access, reports, log)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer closeMetrics() // after Serve, so that the end of requests can be watched
	working.Go(func() { allowed.Watch(work, c.Reload, log) })
	log.Info("listening", "address", ln.Addr().String(), "database", store.name(), "cache", c.Redis != "")
	if c.OnListen != nil {
		c.OnListen(ln.Addr())
	}
	err = service.Serve(serving, ln, s.handler(reports), service.Options{
		Grace: c.ShutdownTimeout, MaxConnections: c.MaxConnections, Setting: "QUERY_MAX_CONNECTIONS", Log: log,
	})
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	log.Info("stopped")
	return nil
}
