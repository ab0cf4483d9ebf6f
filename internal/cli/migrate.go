package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"millrace/migrations"
)

const migrateHelp = `  up       apply all steps that are missing; worker and run do so by themselves
  down     take the latest step back, with all the rows it made room for
  status   list the steps
  roles    make the database users millrace_owner, millrace_writer (for the worker) and millrace_reader (for the query
           service), without passwords, and give them their rights; as a superuser, or as the database's owner with CREATEROLE`

// migrate runs millrace migrate.
func migrate(ctx context.Context, args []string) error {
	if len(args) != 1 || !slices.Contains([]string{"up", "down", "status", "roles"}, args[0]) {
		return usagef("migrate: want one of up, down, status, roles")
	}
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing is left to lose
	switch args[0] {
	case "up":
		applied, err := migrations.Up(ctx, conn)
		for _, m := range applied {
			fmt.Printf("applied %d %s\n", m.Version, m.Name)
		}
		if err == nil && len(applied) == 0 {
			fmt.Println("nothing to apply")
		}
		return err
	case "down":
		undone, err := migrations.Down(ctx, conn)
		switch {
		case err != nil:
			return err
		case undone == nil:
			fmt.Println("nothing to take back")
		default:
			fmt.Printf("took back %d %s\n", undone.Version, undone.Name)
		}
		return nil
	case "roles":
		err := migrations.Roles(ctx, conn)
		if err == nil {
			fmt.Println("millrace_owner, millrace_writer and millrace_reader have their rights; ALTER ROLE … PASSWORD lets them log in")
		}
		return err
	}
	all, err := migrations.Status(ctx, conn)
	for _, m := range all {
		at := "not applied"
		if !m.AppliedAt.IsZero() {
			at = "applied " + m.AppliedAt.UTC().Format(time.RFC3339)
		}
		fmt.Printf("%d %s: %s\n", m.Version, m.Name, at)
	}
	return err
}
