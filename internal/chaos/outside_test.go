package chaos

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// TestClientsFromOutsideCountEveryRecord has clients post to a Millrace that others run, first in peace, and then with an API that is
// killed and a row that somebody deletes: they must say so of both, and of nothing else.
func TestClientsFromOutsideCountEveryRecord(t *testing.T) {
	testenv.Private(t, localstack.Need{}) // skips where it must
	need(t)
	s, err := newSystem(t.Context(), Options{Binary: binary(t), Rate: 100, Duration: time.Minute, Brokers: 1}, func(err error) { t.Error(err) })
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range s.units {
		if err := u.ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), string(s.db))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background()) // nothing to lose
	for _, somebodyInterferes := range []bool{false, true} {
		if _, err := conn.Exec(t.Context(), `TRUNCATE logs; INSERT INTO logs (id, inserted_at, time, data) VALUES ('01990000-0000-7000-8000-000000000000', now(), now(), '{"message": "another''s"}')`); err != nil {
			t.Fatal(err)
		}
		o := NewOutside(OutsideOptions{
			APIs: s.doors(), Query: s.unit("query").addr, Postgres: s.db, Seed: rand.Uint64() >> 32, Rate: 200, Clients: 12, Out: lines{t},
		})
		o.run.Patience = 5 * time.Second
		posting, stop := context.WithCancel(t.Context())
		defer stop()
		if somebodyInterferes {
			time.AfterFunc(time.Second, func() {
				if err := s.unit("api1").kill(); err != nil {
					t.Error(err)
				}
			})
		}
		time.AfterFunc(3*time.Second, func() {
			text, clean := o.Phase("next")
			if t.Log(text); clean == somebodyInterferes {
				t.Errorf("clean is %v, want %v: %s", clean, !somebodyInterferes, text)
			}
			if somebodyInterferes {
				if _, err := conn.Exec(t.Context(), "DELETE FROM logs WHERE id = (SELECT id FROM logs WHERE "+mine+" AND data->>'c' = '0' ORDER BY inserted_at LIMIT 1)"); err != nil {
					t.Error(err)
				}
			}
			stop()
		})
		report, err := o.Run(t.Context(), posting)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, m := range report.Mismatches {
			kinds = append(kinds, m.Kind)
		}
		want := []string(nil)
		if somebodyInterferes {
			want = []string{string(stuck), string(lost)}
		}
		if !slices.Equal(kinds, want) || report.Lost != len(want)/2 || report.Records == 0 && !somebodyInterferes {
			t.Errorf("%d records acked, %d lost, mismatches %v, want %v\n%s", report.Records, report.Lost, strings.Join(kinds, ", "), want, report.Summary())
		}
	}
}
