package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// TestAFileOfCellsIsCheckedAsItWouldBeTaken has files with a mistake, with a change that is safe, and with some that are not.
func TestAFileOfCellsIsCheckedAsItWouldBeTaken(t *testing.T) {
	dir := t.TempDir()
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	const two = "cell a postgres://u:hunter2@h/a\ncell b postgres://u:hunter2@h/b\n"
	for name, text := range map[string]string{
		"one":     two + "since beginning a\n",
		"grown":   two + "since beginning a\nsince " + in(time.Hour) + " a b\n",
		"soon":    two + "since beginning a\nsince " + in(7*time.Minute) + " a b\n",
		"both":    two + "since beginning a\nsince " + in(-48*time.Hour) + " a b\n",
		"drained": two + "since beginning a b\nsince " + in(-48*time.Hour) + " a\n",
		"kept":    two + "keep 2d\nsince beginning a b\nsince " + in(-49*time.Hour) + " a\n",
		"bom":     "\ufeffcell a\nsince beginning a\n",
		"gone":    "cell a postgres://u:hunter2@elsewhere/a\nsince beginning a\n",
		"wrong":   "cell a postgres://u:hun/ter2@h/a\nsince beginning a\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(code int, args string, want ...string) {
		t.Helper()
		p := testenv.StartMillrace(t, dir, []string{"CELLS_FILE=both", "ARCHIVE_URL=file://" + dir + "/archive"}, strings.Fields(args)...)
		<-p.Done
		got := p.Out.String()
		if status := p.ProcessState.ExitCode(); status != code {
			t.Errorf("%s: exit status %d, want %d: %s", args, status, code, got)
		}
		for _, part := range want {
			if !strings.Contains(got, part) {
				t.Errorf("%s: got %s\nwant %s", args, got, part)
			}
		}
		if strings.Contains(got, "hunter2") || strings.Contains(got, "ter2") {
			t.Errorf("%s shows the password: %s", args, got)
		}
	}
	run(0, "cells check one", "one: 2 cells, 1 period, map ")
	run(1, "cells check wrong", `wrong:1: URL of a: the user or password holds "/"`)
	run(1, "cells check none", "none: no such file")
	run(0, "cells check --from one one", "no id goes elsewhere")
	run(0, "cells check grown --from one", " on go to a b in the place of a\n")
	run(1, "cells check soon --from one", "soon may not take the place of one:\n  too short a notice")
	run(0, "cells check soon --from one --notice 6m")
	run(1, "cells check both --from one", "are in a, and would be looked for in a b")
	run(1, "cells check gone --from both", "cell b is still needed")
	run(1, "cells check gone --from drained", "no line keep says how long")
	run(1, "cells check gone --from drained --keep 3d", "which are needed until")
	run(0, "cells check gone --from drained --keep 25h", "cell b goes: see first", "cell a is at another place", "services that run refuse it, because drained does not say keep")
	run(0, "cells check gone --from kept", "cell b goes: see first")
	run(1, "cells check gone --from kept --keep 3d", "which are needed until")
	run(0, "cells check drained --from gone --keep 25h", "cell b is new")
	run(1, "cells check bom", "bom:1: begins with a byte order mark")
	run(1, "cells check postgres://u:hunter2@h/a", "takes the name of a file, got something that may hold a secret: no such file")
	run(1, "cells check one --from host=h,password=hunter2", "takes the name of a file")
	run(0, "cells ls", "a     1/2               postgres://h/a\n", "since beginning  a\n", "\nmap ")
	run(0, "cells ls one", fmt.Sprintf("b     none              %s\n", "postgres://h/b"))
	for args, want := range map[string]string{
		"cells":                            "want one of check FILE, ls [FILE]",
		"cells check":                      "want one FILE",
		"cells ls one both":                "want one FILE at most",
		"cells check one --notice 5m":      "takes a duration of at least 6m0s",
		"cells check one --keep 0s":        "takes a duration such as 30d, at least 24h1m",
		"cells check one --keep 24h":       "takes a duration such as 30d, at least 24h1m",
		"cells check one --keep hunter2":   "takes a duration such as 30d, at least 24h1m",
		"cells ls --from one both":         "cells ls: ",
		"cells check one --keep -1h":       "takes a duration such as 30d",
		"cells check one --notice hunter2": "takes a duration of at least 6m0s",
	} {
		run(2, args, want)
	}
	for _, command := range []string{
		"api", "worker", "query", "migrate up", "migrate down", "migrate status", "migrate roles", "dead list", "dead replay", "dead drop --all",
		"archive ls", "archive restore 2026-11-23",
	} {
		run(1, command, "CELLS_FILE: is set, but this version stores into one database")
	}
}
