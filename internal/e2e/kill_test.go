package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// TestKilledProcessesLoseAndDoubleNothing kills the API and the worker by turns with SIGKILL while clients post batches and
// retry until they are acked. Then it compares what is stored.
func TestKilledProcessesLoseAndDoubleNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	apiAddr := testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0"}
	services := map[string]*testenv.Process{}
	for _, name := range []string{"api", "worker"} {
		services[name] = testenv.StartMillrace(t, t.TempDir(), env, name)
	}

	client := testenv.NewAcked("http://" + apiAddr)
	client.Sizes = []int{100}
	ctx, stop := context.WithCancel(context.Background())
	posting := client.Run(ctx, t, 4)
	defer posting.Wait()
	defer stop()
	const kills = 12
	for i := range kills {
		name := []string{"api", "worker"}[i%2]
		time.Sleep(time.Duration(300+rand.IntN(900)) * time.Millisecond) // any moment is as good as another
		services[name].Signal(t, syscall.SIGKILL)
		<-services[name].Done
		services[name] = testenv.StartMillrace(t, t.TempDir(), env, name)
	}
	stop()
	posting.Wait()

	client.CompareRows(t, conn)
	t.Logf("%d kills", kills)
	if client.Refused.Load()+client.Broken.Load() == 0 {
		t.Error("no request had to be sent again: the kills hit nothing")
	}
	for _, name := range []string{"api", "worker"} {
		services[name].Stop(t)
	}
}
