package cli

import (
	"strings"
	"testing"

	"millrace/internal/testenv"
)

func TestCommandsBehindATransactionPoolerSayWhatIsWrong(t *testing.T) {
	through := testenv.Pooler(t, testenv.Schema(t), "transaction")
	for _, args := range [][]string{{"migrate", "up"}, {"migrate", "status"}, {"dead", "list"}} {
		for _, name := range []string{"POSTGRES_URL", "POSTGRES_OWNER_URL"} {
			p := testenv.StartMillrace(t, t.TempDir(), []string{name + "=" + string(through)}, args...)
			if <-p.Done; p.ProcessState.ExitCode() == 0 || !strings.Contains(p.Out.String(), name+": leads to a pooler") || !strings.Contains(p.Out.String(), "connect to PostgreSQL directly") {
				t.Errorf("millrace %s: %s", strings.Join(args, " "), p.Out)
			}
		}
	}
}
