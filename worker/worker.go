package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"millrace/internal/archive"
	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/pg"
	"millrace/internal/policy"
	"millrace/internal/retry"
	"millrace/internal/service"
	"millrace/migrations"
	"millrace/worker/partition"
)

// Run moves frames into the database until ctx is done. Then it stores what it holds and returns nil. It waits for servers that are
// out of reach, at the start or later. An error is about a setting or a schema that it can't work with, or says what a stop left
// undone.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	log := service.Logger(c.Log, c.Process, "worker")
	c.maxHold, c.slowAfter = cmp.Or(c.maxHold, maxHold), cmp.Or(c.slowAfter, slowAfter)
	c.renewAfter, c.idleAfter = cmp.Or(c.renewAfter, renewAfter), cmp.Or(c.idleAfter, idleAfter)
	ln, closeProfiles, err := service.Open("WORKER_ADDR", c.Addr, config.Access{AllowAnonymous: c.AllowAnonymous}, c.Process, log)
	if err != nil {
		return err
	}
	defer closeProfiles()
	if c.OnListen != nil {
		c.OnListen(ln.Addr())
	}

	rule, err := c.EventTime.Rule()
	if err != nil {
		return fmt.Errorf("TIME_FIELDS: %w", err)
	}
	files, err := openArchive(ctx, c, log)
	if err != nil {
		return err
	}
	defer archive.CloseIdle(files)
	registry := service.NewRegistry()
	parts := partition.New(c.PartitionInterval)
	parts.Files = files
	m := newMetrics(registry, func() time.Duration { return parts.Ahead(time.Now()) }, c.PartitionInterval)
	policies := policy.New(policy.Options{Broker: c.Broker, Log: log, Registry: registry})
	archiveMetrics := newArchiveMetrics(registry)
	var ready service.Ready
	postgres := &condition{name: "postgres", ready: &ready, log: log, gauge: m.database}
	rabbitmq := &condition{name: "rabbitmq", ready: &ready, log: log, gauge: m.connected}
	postgres.pending("worker")
	rabbitmq.pending("worker")
	mux := http.NewServeMux()
	service.Handle(mux, &ready, registry)

	// The admin server is the last to go, so that a stop can be watched.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var serving sync.WaitGroup
	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	serving.Go(func() {
		if err := service.Serve(serveCtx, ln, mux, service.Options{Grace: time.Second, AnswerTime: adminAnswerTime, Log: log}); err != nil {
			fail(adminError{fmt.Errorf("WORKER_ADDR: %w", err)})
		}
	})
	defer serving.Wait()
	defer stopServing()

	var closing sync.WaitGroup // of connections, in the background
	defer closing.Wait()
	writerLink := func() pg.Link { return newLink(c.Postgres, &closing) }
	ownerLink := func() pg.Link { return newLink(cmp.Or(c.Owner, c.Postgres), &closing) }

	if err := prepare(ctx, c, ownerLink(), writerLink(), postgres, log); err != nil {
		if ctx.Err() != nil {
			return failure(ctx)
		}
		return err
	}

	topology := broker.NewTopology(c.Broker)
	busy := &load{streams: c.Streams}
	newStream := func(name string) *stream {
		s := &stream{
			name: name, config: c, decode: decode, maxWindow: c.Prefetch, topology: topology, link: writerLink(), parts: parts, rule: rule,
			metrics: m, load: busy, postgres: postgres, rabbitmq: rabbitmq, log: log,
		}
		postgres.pending(name)
		rabbitmq.pending(name)
		return s
	}
	var streams []*stream
	for i := range c.Streams {
		s := newStream(strconv.Itoa(i))
		for _, q := range streamQueues(i, c.Streams, topology.Shards()) {
			s.queues = append(s.queues, topology.Queue(q))
		}
		streams = append(streams, s)
	}
	dead := newStream("dead")
	dead.queues, dead.maxWindow, dead.decode = []string{topology.DeadQueue()}, deadPrefetch, decodeDead
	rabbitmq.hold(dead.name)
	dead.rabbitmq = &condition{name: "rabbitmq: dead queue", log: log} // ingest does not need it, nor does readiness
	streams = append(streams, dead)
	postgres.hold("worker")
	rabbitmq.hold("worker")

	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var working sync.WaitGroup
	var left atomic.Int64
	for _, s := range streams {
		working.Go(func() { left.Add(int64(s.run(ctx, hard))) })
	}
	parked := &parkedReader{
		urls: c.URLs, topology: topology, link: writerLink(), parts: parts, metrics: m, gauge: m.parked, log: log, renewAt: time.Now().Add(c.renewAfter),
		broker: &condition{name: "rabbitmq: parked messages", log: log}, // nothing waits for it
	}
	working.Go(func() { parked.run(ctx) })
	k := &partition.Keeper{
		Link: ownerLink(), Partitions: parts, Retention: c.Retention, Archived: files != nil, ArchiveRetention: c.ArchiveRetention,
		Remember: partition.LedgerKeep, TimeRule: noteOf(c.EventTime), Log: log, Now: time.Now, Due: m.due, Incomplete: archiveMetrics.Incomplete,
	}
	working.Go(func() { k.Run(ctx) })
	summaries := &summarizer{link: writerLink(), parts: parts, log: log}
	working.Go(func() { summaries.run(ctx) })
	r := &rehearser{link: writerLink(), postgres: postgres}
	working.Go(func() { r.run(ctx) })
	x := &partition.Indexer{Closed: c.IndexClosed, Fields: c.IndexFields.Paths(), Link: ownerLink(), Partitions: parts, Retention: c.Retention, Calm: busy.calm, Log: log, Now: time.Now}
	working.Go(func() { x.Run(ctx) })
	if files != nil {
		archiver := &partition.Archiver{
			Link: ownerLink(), Source: ownerLink(), Partitions: parts, Store: files, After: c.ArchiveAfter, Retention: c.ArchiveRetention,
			Calm: busy.calm, Log: log, Now: time.Now, Metrics: archiveMetrics,
		}
		working.Go(func() { archiver.Run(ctx) })
		working.Go(func() { archive.Watch(ctx, files, archiveMetrics.Away, log) })
	}
	working.Go(func() { policies.Run(ctx) }) // it warns, and nothing waits for it
	log.Info("worker is up", "address", ln.Addr().String(), "streams", c.Streams, "queues", topology.Shards())

	<-ctx.Done()
	ready.Set("shutdown", "stopping")
	deadline := time.AfterFunc(min(c.ShutdownTimeout, lastBatches), cut)
	defer deadline.Stop()
	working.Wait()
	err = failure(ctx)
	if n := left.Load(); n > 0 {
		log.Warn("frames were not stored, they stay in RabbitMQ", "frames", n)
		if hard.Err() != nil {
			err = errors.Join(err, fmt.Errorf("not stored in the time of a stop, and left in RabbitMQ: %d frames or more", n))
		}
	}
	log.Info("worker has stopped")
	return err
}

// archiveCacheBytes is how much of a distant archive's files the worker keeps while it reads them: some blocks that it goes through.
const archiveCacheBytes = 32 << 20

// openArchive returns the archive's store, nil if there is none. It fails if the store can never take a file; one that is away may come back.
func openArchive(ctx context.Context, c Config, log *slog.Logger) (archive.Store, error) {
	store, err := archive.OpenStore(c.Archive, archiveCacheBytes)
	if err != nil || store == nil {
		return nil, err
	}
	err = archive.CheckWritable(ctx, store)
	switch {
	case ctx.Err() != nil: // a stop, which is no failure
		return store, nil
	case errors.As(err, new(*archive.AwayError)):
		log.Warn("no file can be written to the archive yet", "error", err)
		return store, nil
	}
	return store, err
}

// adminAnswerTime is how long a client of the admin server may take to receive its answer.
const adminAnswerTime = 30 * time.Second

// adminError ends the worker when its admin server fails.
type adminError struct{ error }

// failure returns the error that ended ctx, or nil if the caller ended it.
func failure(ctx context.Context) error {
	var admin adminError
	if errors.As(context.Cause(ctx), &admin) {
		return admin.error
	}
	return nil
}

// prepare brings the schema up to date, or checks that it is, and checks that rows can be stored. It waits while the database is out of
// reach and while logs takes no rows. It returns an error if waiting does not help.
func prepare(ctx context.Context, c Config, owner, writer pg.Link, postgres *condition, log *slog.Logger) error {
	defer owner.Drop()
	defer writer.Drop()
	for wait := retry.NewBackoff(); ; {
		err := migrate(ctx, c, &owner, log)
		passing := passes(err, &owner)
		if err == nil {
			err = rehearseAtStart(ctx, &writer)
			passing = errors.As(err, new(tableError)) || passes(err, &writer)
		}
		if err == nil || ctx.Err() != nil || !passing {
			return err
		}
		postgres.fail("worker", err)
		owner.Drop()
		writer.Drop()
		if err := retry.Sleep(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

// migrate brings the schema up to date. If it may not, it returns an error unless the schema is up to date.
func migrate(ctx context.Context, c Config, l *pg.Link, log *slog.Logger) error {
	if err := checkPooler(ctx, c); err != nil {
		return err
	}
	conn, err := l.Open(ctx)
	if err != nil {
		return err
	}
	if !c.AutoMigrate {
		return migrations.Pending(ctx, conn)
	}
	// Another worker's migration may take longer than the lock timeout of a session that stores rows.
	if _, err := conn.Exec(ctx, "SET lock_timeout = 0"); err != nil {
		return err
	}
	done, err := migrations.Up(ctx, conn)
	for _, m := range done {
		log.Info("migrated the schema", "version", m.Version, "name", m.Name)
	}
	return err
}

// checkPooler returns an error if a URL leads through a pooler that the worker can't work with. It must be called before there are
// sessions: their settings and locks would stay in the pooler's servers.
func checkPooler(ctx context.Context, c Config) error {
	for _, to := range []struct {
		name string
		url  config.PostgresURL
	}{{"POSTGRES_URL", c.Postgres}, {"POSTGRES_OWNER_URL", c.Owner}} {
		if to.url == "" {
			continue
		}
		parsed, err := parseURL(to.url)
		if err != nil {
			return fmt.Errorf("%s: %w", to.name, err)
		}
		ctx, cancel := context.WithTimeout(ctx, poolerTimeout)
		err = pg.CheckPooler(ctx, &parsed.Config)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", to.name, err)
		}
	}
	return nil
}

// poolerTimeout is how long a look for a pooler may take. It waits for two connections at most.
const poolerTimeout = 4 * pg.ConnectTimeout

// passes reports whether err may pass by itself: it is about the state of the server or the network, not about what the database holds.
func passes(err error, l *pg.Link) bool {
	if errors.Is(err, pg.ErrTransactionPooler) {
		return false
	}
	if !l.IsOpen() {
		return true
	}
	switch pg.ClassOf(err) {
	case pg.TransactionState, pg.TransactionRollback, pg.InsufficientResources, pg.ObjectState, pg.OperatorIntervention:
		return true
	}
	return false
}
