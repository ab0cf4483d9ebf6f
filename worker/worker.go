package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"millrace/internal/archive"
	"millrace/internal/cells"
	"millrace/internal/config"
	"millrace/internal/pg"
	"millrace/internal/retry"
	"millrace/internal/service"
	"millrace/migrations"
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
	cellsFile, err := cells.Open(c.CellsFile)
	if err != nil {
		return err
	}
	files, err := openArchive(ctx, c, log)
	if err != nil {
		return err
	}
	defer archive.CloseIdle(files)
	registry := service.NewRegistry()
	if err := cellsFile.Register(registry); err != nil {
		return err
	}
	var ready service.Ready
	mux := http.NewServeMux()
	service.Handle(mux, &ready, registry)
	var run func(ctx, hard context.Context) (left int, err error)
	if cellsFile == nil {
		run = newUnit(c, unitOptions{log: log, address: ln.Addr().String(), registry: registry, ready: &ready, rule: rule, files: files}).run
	} else {
		run = newCells(c, cellsFile, unitOptions{log: log, address: ln.Addr().String(), registry: registry, rule: rule, files: files}, &ready).run
	}

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

	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var deadline *time.Timer
	stopping := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		ready.Set("shutdown", "stopping")
		deadline = time.AfterFunc(min(c.ShutdownTimeout, lastBatches), cut)
		close(stopping)
	})
	left, err := run(ctx, hard)
	if stop() { // an error ended it, not a stop
		return err
	}
	<-stopping
	defer deadline.Stop()
	err = failure(ctx)
	if left > 0 {
		log.Warn("frames were not stored, they stay in RabbitMQ", "frames", left)
		if hard.Err() != nil {
			err = errors.Join(err, fmt.Errorf("not stored in the time of a stop, and left in RabbitMQ: %d frames or more", left))
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
