// Command client posts to a Millrace that somebody else runs and breaks, and searches in it, until it is told to end. Then it
// compares every record, and exits with status 1 when one was lost, stored twice or never sent: see chaos.Outside.
//
//	client -apis HOST:PORT,… -query HOST:PORT     until client end; POSTGRES_URL is the database
//	client phase NAME                             beside it: prints what became of the requests so far, and begins the phase NAME
//	client phase -clean NAME                      and exits with 1 if not each was answered at once, as it should be
//	client end                                    has it end
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"millrace/internal/chaos"
	"millrace/internal/config"
)

// control is the address at which a client is told of phases and its end.
const control = "127.0.0.1:9199"

func main() {
	var err error
	ok := false
	switch arg := append(os.Args[1:], ""); arg[0] {
	case "phase", "end":
		ok, err = tell(arg[0], os.Args[2:])
	default:
		ok, err = run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "client: %v\n", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run does what the flags say. It reports whether no mismatch was found.
func run() (ok bool, err error) {
	o := chaos.OutsideOptions{Out: os.Stdout, Postgres: config.PostgresURL(os.Getenv("POSTGRES_URL"))}
	apis := flag.String("apis", "", "addresses of the API, HOST:PORT, comma-separated")
	flag.StringVar(&o.Query, "query", "", "address of the query service, HOST:PORT")
	flag.Uint64Var(&o.Seed, "seed", 0, "of the records; 0 takes one by chance")
	flag.IntVar(&o.Rate, "rate", 1000, "records a second")
	flag.IntVar(&o.Clients, "clients", 24, "that post at once")
	flag.Parse()
	if *apis == "" || o.Query == "" || o.Postgres == "" {
		return false, fmt.Errorf("-apis, -query and POSTGRES_URL must be given")
	}
	o.APIs = strings.Split(*apis, ",")
	if o.Seed == 0 {
		o.Seed = rand.Uint64() >> 32
	}
	posting, end := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer end()
	out := chaos.NewOutside(o)
	http.HandleFunc("/phase", func(w http.ResponseWriter, r *http.Request) {
		text, clean := out.Phase(r.FormValue("name"))
		fmt.Println(text)
		if !clean {
			w.WriteHeader(http.StatusConflict)
		}
		fmt.Fprintln(w, text)
	})
	http.HandleFunc("/end", func(http.ResponseWriter, *http.Request) { end() })
	go func() {
		fmt.Fprintf(os.Stderr, "client: %v\n", http.ListenAndServe(control, nil))
		os.Exit(1)
	}()
	report, err := out.Run(context.Background(), posting)
	if err != nil {
		return false, err
	}
	text, _ := out.Phase("")
	fmt.Println(text)
	fmt.Println(report.Summary())
	return report.OK(), nil
}

// tell tells the client that runs beside this process what it is to do. It reports whether the exit status is to be 0.
func tell(what string, args []string) (ok bool, err error) {
	f := flag.NewFlagSet(what, flag.ExitOnError)
	clean := f.Bool("clean", false, "exit with 1 if not each request was answered at once as it should be")
	_ = f.Parse(args) // it exits
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + control + "/" + what + "?name=" + url.QueryEscape(strings.Join(f.Args(), " ")))
	if err != nil {
		return false, err
	}
	defer resp.Body.Close() // read to its end
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return false, err
	}
	return resp.StatusCode == http.StatusOK || !*clean && resp.StatusCode == http.StatusConflict, nil
}
