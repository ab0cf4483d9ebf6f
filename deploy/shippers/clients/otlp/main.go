// The program otlp sends the lines of a file as an application does that logs with OpenTelemetry's SDK. The tests of deploy/ say
// what the environment must hold.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	otellog "go.opentelemetry.io/otel/log"
	sdk "go.opentelemetry.io/otel/sdk/log"

	"millrace/deploy/shippers/clients/lines"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	exporter, err := otlploghttp.New(ctx,
		otlploghttp.WithEndpointURL(os.Getenv("MILLRACE_URL")+"/v1/logs"),
		otlploghttp.WithHeaders(map[string]string{"Authorization": "Bearer " + os.Getenv("MILLRACE_KEY")}),
		otlploghttp.WithRetry(otlploghttp.RetryConfig{Enabled: true, InitialInterval: 100 * time.Millisecond, MaxInterval: time.Second, MaxElapsedTime: time.Minute}))
	if err != nil {
		return err
	}
	provider := sdk.NewLoggerProvider(sdk.WithProcessor(sdk.NewBatchProcessor(exporter,
		sdk.WithExportMaxBatchSize(lines.Batch), sdk.WithExportInterval(100*time.Millisecond))))
	logger := provider.Logger("lines")
	err = lines.Each(func(line []byte) error {
		var r struct {
			Time                time.Time
			Level, Message, App string
			N                   int
		}
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		var record otellog.Record
		record.SetTimestamp(r.Time)
		record.SetSeverity(otellog.SeverityInfo)
		record.SetSeverityText(r.Level)
		record.SetBody(attribute.StringValue(r.Message))
		record.AddAttributes(attribute.String("app", r.App), attribute.Int("n", r.N))
		logger.Emit(ctx, record)
		return nil
	})
	if err != nil {
		return err
	}
	return provider.Shutdown(ctx)
}
