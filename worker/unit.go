package worker

import (
	"cmp"
	"context"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/archive"
	"millrace/internal/broker"
	"millrace/internal/eventtime"
	"millrace/internal/pg"
	"millrace/internal/policy"
	"millrace/worker/partition"
)

// unit moves the frames of some queues into one database, and looks after its tables. A worker has one, or one for each cell.
type unit struct {
	config   Config
	options  unitOptions
	parts    *partition.Set
	metrics  *metrics
	archived *partition.ArchiveMetrics
	policies *policy.Watch
	postgres *condition
	rabbitmq *condition
}

// unitOptions are what a unit shares with others, or has beside its settings.
type unitOptions struct {
	log      *slog.Logger
	address  string // of the admin server
	registry prometheus.Registerer
	ready    readiness
	rule     *eventtime.Rule
	files    archive.Store // nil where there is no archive

	home *home // nil where there is one database
}

// newUnit returns a unit that does nothing until run is called. It registers metrics.
func newUnit(c Config, o unitOptions) *unit {
	u := &unit{config: c, options: o, parts: partition.New(c.PartitionInterval)}
	u.parts.Files = o.files
	u.metrics = newMetrics(o.registry, func() time.Duration { return u.parts.Ahead(time.Now()) }, c.PartitionInterval)
	u.policies = policy.New(policy.Options{Broker: c.Broker, Log: o.log, Registry: o.registry})
	u.archived = newArchiveMetrics(o.registry)
	u.postgres = &condition{name: "postgres", ready: o.ready, log: o.log, gauge: u.metrics.database}
	u.rabbitmq = &condition{name: "rabbitmq", ready: o.ready, log: o.log, gauge: u.metrics.connected}
	u.postgres.pending("worker")
	u.rabbitmq.pending("worker")
	return u
}

// run moves frames until ctx is done. Then it stores what it holds, unless hard ends before, and returns how many frames it had to leave in
// RabbitMQ. An error is about a schema that it can't work with. It may be called again once it has returned.
func (u *unit) run(ctx, hard context.Context) (left int, err error) {
	c, log, files, parts, m := u.config, u.options.log, u.options.files, u.parts, u.metrics
	var closing sync.WaitGroup // of connections, in the background
	defer closing.Wait()
	writerLink := func() pg.Link { return newLink(c.Postgres, &closing) }
	ownerLink := func() pg.Link { return newLink(cmp.Or(c.Owner, c.Postgres), &closing) }

	if err := prepare(ctx, c, ownerLink(), writerLink(), u.postgres, log); err != nil {
		if ctx.Err() != nil {
			return 0, nil
		}
		return 0, err
	}

	topology := broker.NewTopology(c.Broker)
	busy := &load{streams: c.Streams}
	newStream := func(name string) *stream {
		s := &stream{
			name: name, config: c, decode: u.options.home.decode, maxWindow: c.Prefetch, topology: topology, link: writerLink(), parts: parts, rule: u.options.rule,
			metrics: m, load: busy, postgres: u.postgres, rabbitmq: u.rabbitmq, log: log, home: u.options.home,
		}
		u.postgres.pending(name)
		u.rabbitmq.pending(name)
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
	u.rabbitmq.hold(dead.name)
	dead.rabbitmq = &condition{name: "rabbitmq: dead queue", log: log} // ingest does not need it, nor does readiness
	streams = append(streams, dead)
	u.postgres.hold("worker")
	u.rabbitmq.hold("worker")

	var working sync.WaitGroup
	var unstored atomic.Int64
	for _, s := range streams {
		working.Go(func() { unstored.Add(int64(s.run(ctx, hard))) })
	}
	parked := &parkedReader{
		urls: c.URLs, topology: topology, link: writerLink(), parts: parts, metrics: m, gauge: m.parked, log: log, renewAt: time.Now().Add(c.renewAfter),
		broker: &condition{name: "rabbitmq: parked messages", log: log}, // nothing waits for it
	}
	working.Go(func() { parked.run(ctx) })
	k := &partition.Keeper{
		Link: ownerLink(), Partitions: parts, Retention: c.Retention, Archived: files != nil, ArchiveRetention: c.ArchiveRetention,
		Remember: partition.LedgerKeep, TimeRule: noteOf(c.EventTime), Log: log, Now: time.Now, Due: m.due,
	}
	working.Go(func() { k.Run(ctx) })
	summaries := &summarizer{link: writerLink(), parts: parts, log: log}
	working.Go(func() { summaries.run(ctx) })
	r := &rehearser{link: writerLink(), postgres: u.postgres}
	working.Go(func() { r.run(ctx) })
	x := &partition.Indexer{Closed: c.IndexClosed, Fields: c.IndexFields.Paths(), Link: ownerLink(), Partitions: parts, Retention: c.Retention, Calm: busy.calm, Log: log, Now: time.Now}
	working.Go(func() { x.Run(ctx) })
	if files != nil {
		archiver := &partition.Archiver{
			Link: ownerLink(), Source: ownerLink(), Partitions: parts, Store: files, After: c.ArchiveAfter, Retention: c.ArchiveRetention,
			Calm: busy.calm, Log: log, Now: time.Now, Metrics: u.archived,
		}
		working.Go(func() { archiver.Run(ctx) })
		working.Go(func() { archive.Watch(ctx, files, u.archived.Away, log) })
	}
	working.Go(func() { u.policies.Run(ctx) }) // it warns, and nothing waits for it
	log.Info("worker is up", "address", u.options.address, "streams", c.Streams, "queues", topology.Shards())
	working.Wait()
	return int(unstored.Load()), nil
}
