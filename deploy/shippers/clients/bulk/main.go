// The program bulk sends the lines of a file as documents, by go-elasticsearch's BulkIndexer. The tests of deploy/ say what the
// environment must hold.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/elastic/go-elasticsearch/v8"
	"github.com/elastic/go-elasticsearch/v8/esutil"

	"millrace/deploy/shippers/clients/lines"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	client, err := elasticsearch.NewClient(elasticsearch.Config{
		Addresses:     []string{os.Getenv("MILLRACE_URL")},
		APIKey:        os.Getenv("MILLRACE_KEY"),
		RetryOnStatus: []int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout},
		RetryOnError:  func(*http.Request, error) bool { return true }, // also when an answer was lost: the key of the body makes that safe
		MaxRetries:    20,
		RetryBackoff:  func(int) time.Duration { return 200 * time.Millisecond },
		Header:        http.Header{"X-Dedupe": {"body"}},
	})
	if err != nil {
		return err
	}
	indexer, err := esutil.NewBulkIndexer(esutil.BulkIndexerConfig{
		Client:     client,
		Index:      "app",
		NumWorkers: 1,
		FlushBytes: lines.Batch * 150, // a record has some 150 bytes
		OnError:    func(_ context.Context, err error) { log.Print(err) },
	})
	if err != nil {
		return err
	}
	err = lines.Each(func(line []byte) error {
		return indexer.Add(ctx, esutil.BulkIndexerItem{
			Action: "create",
			Body:   bytes.NewReader(bytes.Clone(line)),
			OnFailure: func(_ context.Context, _ esutil.BulkIndexerItem, answer esutil.BulkIndexerResponseItem, err error) {
				log.Printf("refused: %d %s %v", answer.Status, answer.Error.Reason, err)
			},
		})
	})
	if err != nil {
		return err
	}
	if err := indexer.Close(ctx); err != nil {
		return err
	}
	if failed := indexer.Stats().NumFailed; failed > 0 {
		return fmt.Errorf("%d documents failed", failed)
	}
	return nil
}
