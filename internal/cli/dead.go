package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"millrace/internal/archive"
	"millrace/internal/config"
	"millrace/worker"
)

const deadHelp = `  list            the youngest hundred, with the reason
  show ID         one whole: its properties, then its payload on standard output
  replay [ID…]    store what can be stored now, and remove it here; without IDs, all. What is older than RETENTION stays:
                  here or as the worker has noted it, whichever is shorter
  drop ID…|--all  delete for good`

// replaySettings are the worker's settings that a replay must know.
type replaySettings struct {
	Keep time.Duration `env:"RETENTION" min:"0s" help:"Age at which the worker drops records; empty: what the worker has noted."`
	config.Archive
}

// deadLetters runs millrace dead.
func deadLetters(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("dead: want one of list, show, replay, drop")
	}
	action, args := args[0], args[1:]
	all := len(args) == 1 && args[0] == "--all"
	var ids []uuid.UUID
	if !all {
		for _, a := range args {
			id, err := uuid.Parse(a)
			if err != nil {
				return usagef("dead: got %s, takes the id of a dead letter", config.Shown(a))
			}
			ids = append(ids, id)
		}
	}
	switch {
	case action == "list" && len(args) == 0, action == "show" && len(ids) == 1, action == "replay",
		action == "drop" && (all || len(ids) > 0):
	default:
		return usagef("dead: want list, show ID, replay [ID…] or drop ID…|--all")
	}
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing is left to lose
	switch action {
	case "list":
		letters, err := worker.ListDead(ctx, conn, 100)
		t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		for _, d := range letters {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d bytes\t%s\n", d.ID, d.DeadAt.UTC().Format(time.RFC3339), d.Reason, d.Bytes, d.Error)
		}
		return errors.Join(err, t.Flush())
	case "show":
		d, err := worker.ShowDead(ctx, conn, ids[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "id          %s\ndead at     %s\nreason      %s\nerror       %s\nqueue       %s\nproperties  %s\n\n",
			d.ID, d.DeadAt.UTC().Format(time.RFC3339), d.Reason, d.Error, d.Queue, d.Properties)
		_, err = os.Stdout.Write(append(d.Payload, '\n'))
		return err
	case "replay":
		var r replaySettings
		if err := config.Load(&r); err != nil {
			return err
		}
		files, err := archive.OpenStore(r.Archive, cliCacheBytes)
		if err != nil {
			return err
		}
		replayed, err := worker.ReplayDeadWithin(ctx, conn, ids, r.Keep, files)
		left := 0
		for _, r := range replayed {
			if r.Err != nil {
				left++
				fmt.Printf("%s stays: %v\n", r.ID, r.Err)
			} else {
				fmt.Printf("%s stored, %d rows\n", r.ID, r.Rows)
			}
		}
		if err == nil && left > 0 {
			err = fmt.Errorf("dead: %d of %d could not be stored", left, len(replayed))
		}
		return err
	}
	n, err := worker.DropDead(ctx, conn, ids)
	if err == nil {
		fmt.Printf("dropped %d\n", n)
	}
	return err
}
