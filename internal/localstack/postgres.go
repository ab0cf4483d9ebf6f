package localstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// postgresConf is appended to the postgresql.conf that initdb writes, once: from
// then on the file is the user's to change. fsync, full_page_writes and
// synchronous_commit keep their defaults, on: what is committed must survive.
const postgresConf = `

# --- Millrace: a log store on a shared machine -----------------------------------
max_connections = 200
shared_buffers = 256MB            # the page cache does the rest
maintenance_work_mem = 256MB      # index builds on closed partitions
max_wal_size = 4GB                # COPY at full speed writes 1 GB in seconds:
checkpoint_timeout = 15min        # few checkpoints, so few full-page images
checkpoint_completion_target = 0.9
wal_compression = %s
timezone = 'UTC'
log_timezone = 'UTC'
cluster_name = 'millrace'
`

// initdbName is what initdb's processes are called in marks, logs and pid files.
const initdbName = "initdb"

// postgresEngine is PostgreSQL.
type postgresEngine struct {
	local *local
	bin   string
	as    *account // who runs the server; nil: this process's user
}

// postgresData returns the data folder: PGDATA.
func (l *local) postgresData() string { return filepath.Join(l.dir, "postgres", "data") }

// findPostgres returns the folder of the server programs of a major version, or of the
// newest one if version is empty. If MILLRACE_POSTGRES_BIN is set, the folder of
// another build, it returns that.
func findPostgres(version string) (string, error) {
	if bin := os.Getenv("MILLRACE_POSTGRES_BIN"); bin != "" {
		if isProgram(filepath.Join(bin, "postgres")) && isProgram(filepath.Join(bin, "initdb")) {
			return bin, nil
		}
		return "", exec.ErrNotFound
	}
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	redhat, _ := filepath.Glob("/usr/pgsql-*/bin")
	major := func(bin string) float64 {
		n, _ := strconv.ParseFloat(strings.TrimPrefix(filepath.Base(filepath.Dir(bin)), "pgsql-"), 64)
		return n
	}
	found := append(debian, redhat...)
	slices.SortFunc(found, func(a, b string) int { return int(major(b)*10 - major(a)*10) })
	if path, err := exec.LookPath("initdb"); err == nil {
		// Its version is not known; PostgreSQL itself refuses data of another one.
		found = append(found, filepath.Dir(path))
	}
	for _, bin := range found {
		known := major(bin)
		if version != "" && known != 0 && strconv.FormatFloat(known, 'f', -1, 64) != version {
			continue
		}
		if isProgram(filepath.Join(bin, "postgres")) && isProgram(filepath.Join(bin, "initdb")) {
			return bin, nil
		}
	}
	return "", exec.ErrNotFound
}

// isProgram reports whether a file is there that can be run.
func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func (e *postgresEngine) prepare(ctx context.Context) error {
	data := e.local.postgresData()
	home := filepath.Dir(data)
	version := ""
	if text, err := os.ReadFile(filepath.Join(data, "PG_VERSION")); err == nil {
		version = strings.TrimSpace(string(text))
	}
	var err error
	if e.bin, err = findPostgres(version); err != nil {
		return fmt.Errorf("%s was made by PostgreSQL %s, which is not installed: sudo apt-get install -y postgresql-%s", data, version, version)
	}
	if e.as, err = unprivileged(data); err != nil {
		return err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	if e.as != nil {
		if err := os.Chown(home, int(e.as.uid), int(e.as.gid)); err != nil {
			return err
		}
		if err := e.as.lend(home); err != nil {
			return err
		}
	}
	if version != "" {
		return nil
	}
	return e.initialise(ctx, data)
}

// initialise makes the data folder, under another name until it is complete: a
// start that is cut off halfway leaves nothing that looks like one.
func (e *postgresEngine) initialise(ctx context.Context, data string) error {
	part := data + ".part"
	// initdb's children outlive it for a moment, and may still be writing.
	children := remains{mark: e.local.ID + "/" + initdbName, homes: map[string]string{part: postgres}}
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	passwordFile := filepath.Join(filepath.Dir(data), "password")
	if err := e.writeFile(passwordFile, e.local.PostgresPassword); err != nil {
		return err
	}
	defer os.Remove(passwordFile)

	initdb := func(locale string) error {
		return e.run(ctx, "initdb", "-D", part, "--username=millrace", "--pwfile="+passwordFile,
			"--auth=scram-sha-256", "--encoding=UTF8", "--locale="+locale, "--lc-messages=C")
	}
	err := initdb("C.UTF-8")
	if err != nil && ctx.Err() == nil {
		// The first error is the one to return, unless the locale was the trouble.
		if initdb("C") == nil {
			err = nil
		}
	}
	if err != nil {
		return errors.Join(err, children.sweep(linger))
	}

	// lz4 is far cheaper than the older pglz ("on"). PostgreSQL 15 and later have it, if
	// built so.
	compression := "lz4"
	if e.run(ctx, "postgres", "-D", part, "-c", "wal_compression=lz4", "-C", "wal_compression") != nil {
		compression = "on"
	}
	if err := ctx.Err(); err != nil {
		return errors.Join(err, children.sweep(linger))
	}
	conf, err := os.OpenFile(filepath.Join(part, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conf, postgresConf, compression)
	if err := errors.Join(err, conf.Close()); err != nil {
		return err
	}
	return os.Rename(part, data)
}

// writeFile writes a file that only the server's user may read.
func (e *postgresEngine) writeFile(path, text string) error {
	if err := replaceFile(path, []byte(text+"\n"), 0o600); err != nil || e.as == nil {
		return err
	}
	return os.Chown(path, int(e.as.uid), int(e.as.gid))
}

// run runs one of PostgreSQL's programs to its end.
func (e *postgresEngine) run(ctx context.Context, program string, args ...string) error {
	_, err := e.local.run(ctx, e.command(initdbName, program, args, syscall.SIGKILL))
	return err
}

// command returns a command that runs one of PostgreSQL's programs.
func (e *postgresEngine) command(name, program string, args []string, orphaned syscall.Signal) command {
	return e.local.command(name, command{
		path: filepath.Join(e.bin, program),
		args: args,
		// A folder that is open to everybody: ours may be closed to the server's user.
		dir:      "/",
		as:       e.as,
		orphaned: orphaned,
	})
}

func (e *postgresEngine) launch(port int) (*process, error) {
	data := e.local.postgresData()
	if err := removeStalePID(filepath.Join(data, "postmaster.pid")); err != nil {
		return nil, err
	}
	// An orphaned PostgreSQL gets SIGQUIT, not SIGKILL: it takes its backends and
	// its shared memory with it, and recovers from its log at the next start.
	return e.local.launcher.launch(e.command(postgres, postgres, []string{
		"-D", data,
		"-c", "listen_addresses=127.0.0.1",
		"-c", "port=" + strconv.Itoa(port),
		// A socket's path may have 107 bytes, which a deep folder exceeds.
		"-c", "unix_socket_directories=",
		// Into the log that errors quote from, whatever postgresql.conf says.
		"-c", "log_destination=stderr", "-c", "logging_collector=off",
	}, syscall.SIGQUIT), e.local.died)
}

func (e *postgresEngine) address(port int) string {
	return postgresURL(e.local.PostgresPassword, port)
}

func postgresURL(password string, port int) string {
	return fmt.Sprintf("postgres://millrace:%s@127.0.0.1:%d/millrace?sslmode=disable", password, port)
}

func (e *postgresEngine) ready(ctx context.Context, url string) error {
	return postgresReady(ctx, url)
}

// postgresReady connects to the database, which it makes when it is not there yet.
func postgresReady(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err == nil {
		defer conn.Close(ctx)
		return conn.Ping(ctx)
	}
	const noSuchDatabase = "3D000"
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != noSuchDatabase {
		return err
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	name := config.Database
	config.Database = postgres
	if conn, err = pgx.ConnectConfig(ctx, config); err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	return err
}

// quit returns the signal for the fast shutdown, which ends sessions and writes a
// checkpoint. A checkpoint can take long. If the data is about to be removed, it is
// not worth that, and quit returns the signal for the immediate shutdown.
func (e *postgresEngine) quit() os.Signal {
	if e.local.temporary {
		return syscall.SIGQUIT
	}
	return syscall.SIGINT
}

func (e *postgresEngine) remains() remains {
	return remains{
		mark:  e.local.ID + "/" + postgres,
		homes: map[string]string{e.local.postgresData(): postgres},
		pids:  []string{filepath.Join(e.local.dir, "pid", postgres)},
	}
}
