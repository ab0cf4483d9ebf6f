package cli

import (
	"context"
	"fmt"
	"strings"

	"millrace/internal/keys"
)

const keysHelp = `Prints a new key, once, and the line for the file that KEYS_FILE names; the file holds only the key's SHA-256.

  --scope S   write (POST /log, /log/batch), read (the query service), or both: write,read
  --rate N    most records a second that the key may store; without it there is no limit
  --burst N   most records at once after a pause (default N of the rate); a larger batch waits until the burst is whole

A line of the file is: NAME SHA256 SCOPES [rate=N [burst=N]]. Blank lines and lines that start with # are passed over.
The services read the file again within a second of a change, and at once on SIGHUP. Where it has a mistake they log
the line and keep the keys they have.`

// newKey runs millrace keys new.
func newKey(_ context.Context, args []string) error {
	if len(args) < 2 || args[0] != "new" {
		return usagef("keys: want new NAME --scope write,read")
	}
	flags := newFlags("keys new")
	scope := flags.String("scope", "", "")
	rate := flags.Int("rate", 0, "")
	burst := flags.Int("burst", 0, "")
	if err := parseFlags(flags, args[2:], 0); err != nil {
		return err
	}
	key, secret, err := keys.New(args[1], strings.FieldsFunc(*scope, func(r rune) bool { return r == ',' }))
	if err == nil {
		if key.Rate, key.Burst = *rate, *burst; key.Burst == 0 {
			key.Burst = key.Rate
		}
		err = key.Validate()
	}
	if err != nil {
		return usageError{err}
	}
	fmt.Printf("key, shown once:  %s\nfor KEYS_FILE:    %s\n", secret, key)
	return nil
}
