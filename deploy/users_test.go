package deploy

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// TestTheContainersUsersAreMade does on a real server what docker-compose.yml does: it runs the script that PostgreSQL's image
// is given, then migrate up, then migrate roles.
func TestTheContainersUsersAreMade(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("psql is not installed")
	}
	stack := testenv.Private(t, localstack.Need{Postgres: true})
	c, err := pgx.ParseConfig(stack.PostgresURL)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("deploy/postgres/users.sh")
	cmd.Env = []string{"PATH=/usr/bin:/bin:" + strings.TrimSuffix(psql, "/psql"), "PGHOST=" + c.Host, fmt.Sprintf("PGPORT=%d", c.Port), "PGPASSWORD=" + c.Password,
		"POSTGRES_USER=" + c.User, "POSTGRES_DB=" + c.Database,
		"POSTGRES_OWNER_PASSWORD=own'er", "POSTGRES_WRITER_PASSWORD=w$r", "POSTGRES_READER_PASSWORD=r", "POSTGRES_MONITOR_PASSWORD=m"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"migrate", "up"}, {"migrate", "roles"}, {"migrate", "up"}, {"migrate", "roles"}} { // the second round is the next version's
		p := testenv.StartMillrace(t, t.TempDir(), []string{"POSTGRES_URL=" + stack.PostgresURL}, args...)
		if <-p.Done; p.ProcessState.ExitCode() != 0 {
			t.Fatalf("millrace %s: %s", strings.Join(args, " "), p.Out)
		}
	}
	for user, password := range map[string]string{"millrace_owner": "own'er", "millrace_writer": "w$r", "millrace_reader": "r", "millrace_monitor": "m"} {
		as := c.Copy()
		as.User, as.Password = user, password
		conn, err := pgx.ConnectConfig(context.Background(), as)
		if err != nil {
			t.Errorf("%s: %v", user, err)
			continue
		}
		var super bool
		if err := conn.QueryRow(context.Background(), "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user").Scan(&super); err != nil || super {
			t.Errorf("%s may do too much: %v, %v", user, super, err)
		}
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
		as.Password = "another"
		if _, err := pgx.ConnectConfig(context.Background(), as); err == nil {
			t.Errorf("%s logs in with any password", user)
		}
	}
}
