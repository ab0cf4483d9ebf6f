// The program gelf sends the lines of a file as Docker's log driver gelf does, by the library that the driver has. It is told the transport, tcp or udp, and an address. The tests of
// deploy/ say what the environment must hold.
package main

import (
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/Graylog2/go-gelf/gelf"

	"millrace/deploy/shippers/clients/lines"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func run(transport, addr, name string) (err error) {
	w, err := writer(transport, addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	extra, err := json.Marshal(map[string]any{"_container_name": name, "_image_name": "shop:1", "_tag": name, "_created": time.Now()})
	if err != nil {
		return err
	}
	return lines.Each(func(line []byte) error {
		return w.WriteMessage(&gelf.Message{
			Version: "1.1", Host: "node1", Short: string(line), TimeUnix: float64(time.Now().UnixMilli()) / 1000, Level: gelf.LOG_INFO, RawExtra: extra,
		})
	})
}

// writer returns a writer with the driver's settings.
func writer(transport, addr string) (gelf.Writer, error) {
	switch transport {
	case "tcp":
		return gelf.NewTCPWriter(addr)
	case "udp":
		w, err := gelf.NewUDPWriter(addr)
		if err != nil {
			return nil, err
		}
		w.CompressionType, w.CompressionLevel = gelf.CompressGzip, flate.BestSpeed
		return w, nil
	}
	return nil, fmt.Errorf("transport: got %q, takes tcp or udp", transport)
}
