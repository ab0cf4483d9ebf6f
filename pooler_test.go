package main

import (
	"strings"
	"testing"

	"millrace/internal/testenv"
)

func TestCommandsBehindATransactionPoolerSayWhatIsWrong(t *testing.T) {
	through := testenv.Pooler(t, testenv.Schema(t), "transaction")
	for _, args := range [][]string{{"migrate", "up"}, {"migrate", "status"}, {"dead", "list"}} {
		for _, name := range []string{"POSTGRES_URL", "POSTGRES_OWNER_URL"} {
			p := startMillrace(t, t.TempDir(), []string{name + "=" + string(through)}, args...)
			if <-p.done; p.ProcessState.ExitCode() == 0 || !strings.Contains(p.out.String(), name+": leads to a pooler") || !strings.Contains(p.out.String(), "connect to PostgreSQL directly") {
				t.Errorf("millrace %s: %s", strings.Join(args, " "), p.out)
			}
		}
	}
}
