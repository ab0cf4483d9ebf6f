package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/config"
	"millrace/worker/partition"
)

const archiveHelp = `Looks after the archive, the second copy of closed partitions in columns. The database says which files count.

  ls [RANGE]        the ranges that are in the archive, with their files, rows and bytes
  verify [RANGE]    reads every file, puts every record together again, and compares them with what was written
  manifest [RANGE]  the files that count, as JSON: for DuckDB and others, to which the store may show files that no longer count
  restore RANGE     puts rows that files alone have into logs again, without doubling any; --keep 7d is how long RETENTION leaves them

RANGE is a day such as 2026-11-23, an hour such as 2026-11-23T09, or two times with a slash: 2026-11-23T09:00:00Z/2026-11-24T00:00:00Z.`

// archiveSettings are the settings of millrace archive besides the database's.
type archiveSettings struct {
	config.Archive
}

// cliCacheBytes is how much of a distant archive's files a command keeps while it goes through them.
const cliCacheBytes = 32 << 20

// runArchive runs millrace archive.
func runArchive(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("archive: want one of ls, verify, manifest, restore")
	}
	action := args[0]
	flags := newFlags("archive " + action)
	keep := flags.String("keep", "7d", "")
	if err := parseFlags(flags, args[1:], -1); err != nil {
		return err
	}
	var from, to time.Time
	switch {
	case action != "ls" && action != "verify" && action != "manifest" && action != "restore":
		return usagef("archive: got %s, takes one of ls, verify, manifest, restore", config.Shown(action))
	case flags.NArg() > 1 || action == "restore" && flags.NArg() != 1:
		return usagef("archive %s: want one RANGE", action)
	case flags.NArg() == 1:
		var err error
		if from, to, err = parseRange(flags.Arg(0)); err != nil {
			return usagef("archive %s: %w", action, err)
		}
	default:
		to = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	keepFor, err := config.ParseDuration(*keep)
	if err != nil || keepFor <= 0 {
		return usagef("archive restore: --keep: got %s, takes a duration such as 24h or 7d", config.Shown(*keep))
	}
	var s archiveSettings
	if err := config.Load(&s); err != nil {
		return err
	}
	store, err := archive.OpenStore(s.Archive, cliCacheBytes)
	if err != nil {
		return err
	}
	if store == nil && (action == "verify" || action == "restore") {
		return config.Missing("ARCHIVE_URL")
	}
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing is left to lose
	ranges, err := partition.ArchivedRanges(ctx, conn, from, to)
	if err != nil {
		return err
	}
	switch action {
	case "ls":
		return listArchive(ranges)
	case "verify":
		return verifyArchive(ctx, conn, store, from, to)
	case "manifest":
		return printManifest(ctx, conn, s.ArchiveURL, from, to)
	}
	return restoreRanges(ctx, conn, store, ranges, keepFor)
}

// parseRange returns the times that a RANGE names.
func parseRange(text string) (from, to time.Time, err error) {
	if first, last, ok := strings.Cut(text, "/"); ok {
		if from, _, err = parseRangePart(first); err == nil {
			to, _, err = parseRangePart(last)
		}
		if err == nil && !from.Before(to) {
			err = errors.New("the range ends before it begins")
		}
		return from, to, err
	}
	from, length, err := parseRangePart(text)
	if err == nil && length == 0 {
		err = fmt.Errorf("got %s, takes a day, an hour, or two times with a slash between them", config.Shown(text))
	}
	return from, from.Add(length), err
}

// parseRangePart returns a time, and how long what it names is.
func parseRangePart(text string) (at time.Time, length time.Duration, err error) {
	for _, form := range []struct {
		layout string
		length time.Duration
	}{{time.DateOnly, 24 * time.Hour}, {"2006-01-02T15", time.Hour}, {time.RFC3339, 0}} {
		if at, err = time.Parse(form.layout, text); err == nil {
			return at.UTC(), form.length, nil
		}
	}
	return at, 0, fmt.Errorf("got %s, takes a day such as 2026-11-23, an hour such as 2026-11-23T09, or a time such as 2026-11-23T09:30:00Z", config.Shown(text))
}

func listArchive(ranges []partition.Range) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FROM\tTO\tFILES\tROWS\tBYTES\tGENERATION\tROWS IN POSTGRESQL")
	for _, r := range ranges {
		state := "all"
		switch {
		case r.FilesOnly && r.UpToDate:
			state = "none"
		case r.FilesOnly:
			state = "late ones, to be copied"
		case !r.UpToDate:
			state = "all, to be copied anew"
		}
		if r.KeptUntil.After(time.Now()) {
			state += ", kept until " + r.KeptUntil.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", r.From.Format(time.RFC3339), r.To.Format(time.RFC3339), r.Files, r.Rows, r.Bytes, r.Generation, state)
	}
	return t.Flush()
}

// publishedFile is a file as the catalog has it.
type publishedFile struct {
	Name      string    `json:"name"`
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Rows      int64     `json:"rows"`
	Bytes     int64     `json:"bytes"`
	TailBytes int64     `json:"-"`
}

func publishedFiles(ctx context.Context, conn *pgx.Conn, from, to time.Time) ([]publishedFile, error) {
	rows, err := conn.Query(ctx, `SELECT name, from_at AT TIME ZONE 'UTC', to_at AT TIME ZONE 'UTC', rows, bytes, tail_bytes FROM archive_files
		WHERE state = 'published' AND from_at < $2 AND to_at > $1 ORDER BY from_at, name`, from, to)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[publishedFile])
}

// verifyArchive reads all files of a range. It goes on after one that is damaged.
func verifyArchive(ctx context.Context, conn *pgx.Conn, store archive.Store, from, to time.Time) error {
	files, err := publishedFiles(ctx, conn, from, to)
	if err != nil {
		return err
	}
	var rows int64
	damaged := 0
	for _, f := range files {
		err := verifyFile(ctx, store, f)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			damaged++
			fmt.Printf("%s: %v\n", f.Name, err)
		default:
			rows += f.Rows
		}
	}
	fmt.Printf("%d files, %d damaged or missing; %d rows are as they were written\n", len(files), damaged, rows)
	if damaged > 0 {
		return fmt.Errorf("%d of %d files can't be read as they were written", damaged, len(files))
	}
	return nil
}

func verifyFile(ctx context.Context, store archive.Store, f publishedFile) (err error) {
	file, object, err := archive.OpenStored(ctx, store, archive.Stored{Name: f.Name, Bytes: f.Bytes, TailBytes: f.TailBytes})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	rows, err := file.Verify(ctx)
	if err == nil && int64(rows) != f.Rows {
		err = fmt.Errorf("it has %d rows, %d were written", rows, f.Rows)
	}
	return err
}

// printManifest prints the files that count.
func printManifest(ctx context.Context, conn *pgx.Conn, url config.ArchiveURL, from, to time.Time) error {
	files, err := publishedFiles(ctx, conn, from, to)
	if err != nil {
		return err
	}
	if files == nil {
		files = []publishedFile{}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(struct {
		URL   string          `json:"url,omitempty"` // that the names are below
		Files []publishedFile `json:"files"`
	}{url.String(), files})
}

func restoreRanges(ctx context.Context, conn *pgx.Conn, store archive.Store, ranges []partition.Range, keep time.Duration) error {
	if len(ranges) == 0 {
		return errors.New("nothing of that range is in the archive; millrace archive ls lists what is")
	}
	for _, r := range ranges {
		rows, err := partition.Restore(ctx, conn, store, r, keep)
		if err != nil {
			return fmt.Errorf("restore %s/%s: %w", r.From.Format(time.RFC3339), r.To.Format(time.RFC3339), err)
		}
		fmt.Printf("%s/%s: %d rows restored\n", r.From.Format(time.RFC3339), r.To.Format(time.RFC3339), rows)
	}
	return nil
}
