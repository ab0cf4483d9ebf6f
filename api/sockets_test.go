package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/internal/config"
	"millrace/internal/testenv"
)

// authority makes certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := new(authority)
	a.file, _ = a.issue(t, "authority")
	return a
}

// issue writes a certificate for 127.0.0.1 and its key to files. The first is the authority's own.
func (a *authority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		parent, signer = template, key
		a.cert, a.key = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// client returns the TLS configuration of a client that trusts the authority. It has a certificate of the authority if withCertificate is set.
func (a *authority) client(t *testing.T, withCertificate bool) *tls.Config {
	t.Helper()
	text, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"}
	c.RootCAs.AppendCertsFromPEM(text)
	if withCertificate {
		cert, err := tls.LoadX509KeyPair(a.issue(t, "client"))
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

// sendTo writes text to an address and closes the connection.
func sendTo(t *testing.T, network string, addr config.Address, text string) {
	t.Helper()
	conn, err := net.Dial(network, string(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // what was written is under way
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// awaitPublished waits until so many records are in the queues, and returns them.
func (a *testAPI) awaitPublished(t *testing.T, want int) string {
	t.Helper()
	var all []string
	testenv.Eventually(t, 30*time.Second, fmt.Sprintf("%d records are published", want), func() bool {
		for _, record := range a.published(t) {
			all = append(all, record)
		}
		return len(all) >= want
	})
	if len(all) != want {
		t.Errorf("%d records are published, want %d", len(all), want)
	}
	return strings.Join(all, "\n")
}

// listenOnSockets starts an API that takes a protocol of sockets at three addresses, which set puts into its settings. Over TLS clients need a certificate of ca's.
func listenOnSockets(t *testing.T, ca *authority, set func(c *Config, tcp, tls, udp config.Address)) (a *testAPI, tcp, tls, udp config.Address) {
	t.Helper()
	tcp, tls, udp = config.Address(testenv.FreeAddress(t)), config.Address(testenv.FreeAddress(t)), config.Address(testenv.FreeAddress(t))
	a = listenOn(t, testenv.Broker(t, 2), func(c *Config) {
		c.TLSCertFile, c.TLSKeyFile = ca.issue(t, "server")
		c.TLSClientCA = ca.file
		set(c, tcp, tls, udp)
	})
	a.url = "https" + strings.TrimPrefix(a.url, "http")
	a.client.Transport.(*http.Transport).TLSClientConfig = ca.client(t, true)
	testenv.Eventually(t, 30*time.Second, "the API is ready", func() bool { return a.get(t, "/ready").status == http.StatusOK })
	return a, tcp, tls, udp
}

// sendOverTLS sends a text over a connection of its own, with a certificate of ca's.
func sendOverTLS(t *testing.T, addr config.Address, ca *authority, text string) {
	t.Helper()
	conn, err := tls.Dial("tcp", string(addr), ca.client(t, true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

// wantPublished waits for as many records as there are texts, and looks for each text in them.
func (a *testAPI) wantPublished(t *testing.T, texts ...string) {
	t.Helper()
	all := a.awaitPublished(t, len(texts))
	for _, want := range texts {
		if !strings.Contains(all, want) {
			t.Errorf("there is no %s in\n%s", want, all)
		}
	}
}

func TestSyslogIsPublishedOverTCPTLSAndUDP(t *testing.T) {
	ca := newAuthority(t)
	a, tcp, tlsAddr, udp := listenOnSockets(t, ca, func(c *Config, tcp, tls, udp config.Address) {
		c.SyslogTCPAddr, c.SyslogTLSAddr, c.SyslogUDPAddr = tcp, tls, udp
	})
	sendTo(t, "tcp", tcp, "<13>1 - tcp app - - - one\n")
	sendTo(t, "udp", udp, "<13>1 - udp app - - - two\n")
	sendOverTLS(t, tlsAddr, ca, "27 <13>1 - tls app - - - three")
	a.wantPublished(t, `"message":"one","level":"notice","host":{"name":"tcp"}`, `"message":"two","level":"notice","host":{"name":"udp"}`, `"message":"three","level":"notice","host":{"name":"tls"}`)
	// Without a certificate nothing is taken.
	stranger, err := tls.Dial("tcp", string(tlsAddr), ca.client(t, false))
	if err == nil { // TLS 1.3 tells the client only when it reads
		if _, err = stranger.Read(make([]byte, 1)); err == nil {
			t.Error("a client without a certificate is let in")
		}
	}
}

func TestGELFIsPublishedOverTCPTLSAndUDP(t *testing.T) {
	ca := newAuthority(t)
	a, tcp, tlsAddr, udp := listenOnSockets(t, ca, func(c *Config, tcp, tls, udp config.Address) {
		c.GELFTCPAddr, c.GELFTLSAddr, c.GELFUDPAddr = tcp, tls, udp
	})
	sendTo(t, "tcp", tcp, "{\"short_message\":\"one\",\"level\":3}\x00")
	sendTo(t, "udp", udp, "\x1e\x0fabcdefgh\x01\x02\"two\",\"_a\":2}")
	sendTo(t, "udp", udp, "\x1e\x0fabcdefgh\x00\x02{\"short_message\":")
	sendOverTLS(t, tlsAddr, ca, "{\"short_message\":\"three\"}\n")
	a.wantPublished(t, `{"message":"one","level":"error","gelf":{"peer":"127.0.0.1"}}`, `{"message":"two","a":2,"gelf":{"peer":"127.0.0.1"}}`, `{"message":"three","gelf":{"peer":"127.0.0.1"}}`)
	testenv.Eventually(t, 10*time.Second, "all are counted", func() bool {
		return strings.Contains(a.get(t, "/metrics").body, `millrace_api_records_accepted_total{intake="gelf"} 3`)
	})
}

// While the queue is full, messages wait. None is lost, and none stored twice.
func TestMessagesWaitWhileTheQueueIsFull(t *testing.T) {
	broker := testenv.Broker(t, 1)
	broker.MaxBytes = 64 << 10
	var addr config.Address
	a := startOn(t, broker, func(c *Config) {
		addr = config.Address(testenv.FreeAddress(t))
		c.SyslogTCPAddr, c.FrameCompression = addr, "none"
	})
	const senders, each = 4, 100
	for range senders {
		go func() {
			conn, err := net.Dial("tcp", string(addr))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close() // all was written
			for i := range each {
				if _, err := fmt.Fprintf(conn, "<13>%d %s\n", i, strings.Repeat("x", 4<<10)); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	testenv.Eventually(t, 30*time.Second, "the queue is full", func() bool {
		return strings.Contains(a.get(t, "/metrics").body, `millrace_api_unavailable_total{reason="refused"} `) &&
			!strings.Contains(a.get(t, "/metrics").body, `millrace_api_unavailable_total{reason="refused"} 0`)
	})
	a.awaitPublished(t, senders*each)
	testenv.Eventually(t, 10*time.Second, "all are counted", func() bool {
		return strings.Contains(a.get(t, "/metrics").body, fmt.Sprintf(`millrace_api_records_accepted_total{intake="syslog"} %d`, senders*each))
	})
}

func TestASocketThatAllCouldReachIsRefused(t *testing.T) {
	cert, key := newAuthority(t).issue(t, "server")
	base := map[string]string{"RABBITMQ_URL": "amqp://localhost"}
	for _, tt := range []struct {
		settings map[string]string
		want     string // part of the error, or empty
	}{
		{map[string]string{"SYSLOG_TCP_ADDR": "127.0.0.1:514"}, ""},
		{map[string]string{"SYSLOG_UDP_ADDR": ":514"}, "SYSLOG_UDP_ADDR: :514 is not a loopback address"},
		{map[string]string{"SYSLOG_TCP_ADDR": "0.0.0.0:514"}, "set SYSLOG_ALLOW, or ALLOW_ANONYMOUS=true"},
		{map[string]string{"SYSLOG_TCP_ADDR": "0.0.0.0:514", "SYSLOG_ALLOW": "10.0.0.0/8, 192.0.2.1"}, ""},
		{map[string]string{"SYSLOG_TCP_ADDR": "0.0.0.0:514", "ALLOW_ANONYMOUS": "true"}, ""},
		{map[string]string{"SYSLOG_TCP_ADDR": "127.0.0.1:514", "SYSLOG_ALLOW": "10.0.0.0/33"}, "SYSLOG_ALLOW: got"},
		{map[string]string{"SYSLOG_TCP_ADDR": "127.0.0.1:514", "SYSLOG_ALLOW": "example.com"}, "SYSLOG_ALLOW: got"},
		{map[string]string{"SYSLOG_TCP_ADDR": "127.0.0.1"}, "SYSLOG_TCP_ADDR: got"},
		{map[string]string{"GELF_UDP_ADDR": ":12201"}, "GELF_UDP_ADDR: :12201 is not a loopback address, and all who reach it could send: set GELF_ALLOW, or"},
		{map[string]string{"GELF_TCP_ADDR": ":12201", "GELF_ALLOW": "10.0.0.0/8"}, ""},
		{map[string]string{"GELF_TCP_ADDR": ":12201", "SYSLOG_ALLOW": "10.0.0.0/8"}, "GELF_TCP_ADDR: "},
		{map[string]string{"GELF_TLS_ADDR": "127.0.0.1:12202"}, "GELF_TLS_ADDR needs TLS_CERT_FILE"},
		{map[string]string{"SYSLOG_TZ": "Mars/Olympus"}, "SYSLOG_TZ: got"},
		{map[string]string{"SYSLOG_TLS_ADDR": "127.0.0.1:6514"}, "SYSLOG_TLS_ADDR needs TLS_CERT_FILE"},
		{map[string]string{"SYSLOG_TLS_ADDR": ":6514", "TLS_CERT_FILE": cert, "TLS_KEY_FILE": key}, "TLS_CLIENT_CA_FILE, or ALLOW_ANONYMOUS"},
		{map[string]string{"SYSLOG_TLS_ADDR": ":6514", "TLS_CERT_FILE": cert, "TLS_KEY_FILE": key, "TLS_CLIENT_CA_FILE": cert}, ""},
	} {
		settings := maps.Clone(base)
		maps.Copy(settings, tt.settings)
		var c Config
		err := config.LoadFrom(settings, &c)
		if err == nil {
			err = c.Validate()
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v: got %v, want %q", tt.settings, err, tt.want)
		}
	}
}

func TestAnAddressThatIsTakenStopsTheStart(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // nobody connects
	c := defaults(t)
	c.Broker = testenv.Broker(t, 1)
	c.SyslogUDPAddr = config.Address(testenv.FreeAddress(t))
	c.SyslogTCPAddr = config.Address(ln.Addr().String())
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "SYSLOG_TCP_ADDR: ") {
		t.Errorf("got %v", err)
	}
}
