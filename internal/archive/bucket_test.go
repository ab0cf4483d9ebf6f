package archive_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"millrace/internal/archive"
	"millrace/internal/config"
	"millrace/internal/testenv"
)

// throughProxy returns a server, a proxy in front of it, and the store as it is seen through the proxy.
func throughProxy(t *testing.T) (*testenv.S3, *testenv.FaultyProxy, archive.Store) {
	s3 := testenv.StartS3(t)
	proxy := testenv.StartFaultyProxy(t, s3.Addr)
	return s3, proxy, openStore(t, s3.Archive(proxy.Addr))
}

// patiently calls f until the store is tried again after an outage.
func patiently(t *testing.T, what string, f func() error) {
	t.Helper()
	testenv.Eventually(t, 5*time.Second, what, func() bool {
		err := f()
		if err != nil && !errors.As(err, new(*archive.AwayError)) {
			t.Fatalf("%s: %v", what, err)
		}
		return err == nil
	})
}

// keepsSecret fails if an error tells a secret.
func keepsSecret(t *testing.T, s3 *testenv.S3, err error) {
	t.Helper()
	if err != nil && (strings.Contains(fmt.Sprintf("%+v", err), s3.Secret) || strings.Contains(err.Error(), "Signature=") || strings.Contains(err.Error(), "X-Amz-")) {
		t.Errorf("an error tells of the key: %v", err)
	}
}

func TestABucketIsReadThroughFaultsThatPass(t *testing.T) {
	_, proxy, store := throughProxy(t)
	const size = 3<<20 + 5
	for _, fault := range []testenv.Fault{testenv.Fails, testenv.SlowDown, testenv.Cuts, testenv.LosesAnswer, testenv.Truncates, testenv.Hangs} {
		t.Run(fault.String(), func(t *testing.T) {
			name := "v1/" + strings.ReplaceAll(fault.String(), " ", "-")
			if err := store.Create(t.Context(), name, writeIn(1<<20, content(size))); err != nil {
				t.Fatal(err)
			}
			proxy.SpoilNth(2, fault)
			if got, err := readAll(t.Context(), store, name, size); err != nil || !bytes.Equal(got, content(size)) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if n := proxy.Requests(); n > 8 {
				t.Errorf("%d requests for a file of four blocks and one fault", n)
			}
			proxy.SpoilAll(testenv.NoFault)
		})
	}
}

func TestABucketThatIsAwayIsToldAtOnceAndComesBack(t *testing.T) {
	s3, proxy, store := throughProxy(t)
	const size = 2 << 20
	for i, fault := range []testenv.Fault{testenv.Fails, testenv.SlowDown, testenv.Cuts, testenv.Truncates, testenv.Hangs} {
		t.Run(fault.String(), func(t *testing.T) {
			name := fmt.Sprint("v1/", i)
			patiently(t, "a file is written", func() error { return store.Create(t.Context(), name, writeIn(1<<20, content(size))) })
			proxy.SpoilAll(fault)
			_, err := readAll(t.Context(), store, name, size)
			away := new(archive.AwayError)
			if !errors.As(err, &away) || archive.Away(store) == nil {
				t.Fatalf("got %v, want that the store is away", err)
			}
			if errors.Is(err, archive.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an outage is taken for damage: %v", err)
			}
			if !strings.Contains(err.Error(), s3.Bucket) || !strings.Contains(err.Error(), name) {
				t.Errorf("%v does not say what was read, and where", err)
			}
			keepsSecret(t, s3, err)
			if n := proxy.Requests(); n > 8 { // net/http tries again where a connection was in use before
				t.Errorf("a read was tried %d times", n)
			}
			before := proxy.Requests()
			if _, err := readAll(t.Context(), store, name, size); !errors.As(err, &away) {
				t.Errorf("got %v, want that the store is away", err)
			}
			if err := store.Create(t.Context(), name+"/b", writeIn(10, content(10))); !errors.As(err, &away) {
				t.Errorf("got %v, want that the store is away", err)
			}
			if n := proxy.Requests() - before; n > 0 && time.Since(away.Since) < time.Second {
				t.Errorf("a store that is away was asked %d times", n)
			}
			proxy.SpoilAll(testenv.NoFault)
			patiently(t, "the store is back", func() error {
				got, err := readAll(t.Context(), store, name, size)
				if err == nil && !bytes.Equal(got, content(size)) {
					t.Error("the store has come back with other bytes")
				}
				return err
			})
			if away := archive.Away(store); away != nil {
				t.Errorf("the store is back, and still said to be away: %v", away)
			}
		})
	}
}

func TestAWriteToABucketIsWholeOrNothingThroughFaults(t *testing.T) {
	s3, proxy, store := throughProxy(t)
	for _, size := range []int{1000, partBytes + 1000} { // at once, and in parts: begin, two parts, end
		requests := 1
		if size > partBytes {
			requests = 4
		}
		for _, fault := range []testenv.Fault{testenv.Fails, testenv.SlowDown, testenv.Cuts, testenv.LosesAnswer, testenv.Truncates, testenv.Denies} {
			for nth := 1; nth <= requests; nth++ {
				name := fmt.Sprintf("v1/%d-%d-%d", size, fault, nth)
				proxy.SpoilNth(nth, fault)
				err := store.Create(t.Context(), name, writeIn(1<<20, content(size)))
				keepsSecret(t, s3, err)
				if n := proxy.Requests(); n > requests+6 {
					t.Errorf("%s at request %d of %d bytes: %d requests", fault, nth, size, n)
				}
				proxy.SpoilAll(testenv.NoFault)
				switch {
				case fault == testenv.Denies && err == nil:
					t.Errorf("%s at request %d of %d bytes: no error", fault, nth, size)
				case fault == testenv.Denies && errors.As(err, new(*archive.AwayError)):
					t.Errorf("a refusal is taken for an outage: %v", err)
				case err == nil:
					if got, err := readAll(t.Context(), store, name, size); err != nil || !bytes.Equal(got, content(size)) {
						t.Errorf("%s at request %d of %d bytes: got %d bytes, %v", fault, nth, size, len(got), err)
					}
				case fault != testenv.Denies && fault != testenv.LosesAnswer && fault != testenv.Truncates:
					t.Errorf("%s at request %d of %d bytes: %v", fault, nth, size, err)
				case fault == testenv.Denies && !isGone(t, store, name):
					t.Errorf("%s at request %d of %d bytes: there is a file", fault, nth, size)
				}
				patiently(t, "a file is deleted", func() error { return store.Delete(t.Context(), name) })
			}
		}
	}
	if left := unfinished(t, s3); len(left) > 0 {
		t.Errorf("unfinished uploads are left: %v", left)
	}
}

func TestAWriteThatHangsEndsWithItsContext(t *testing.T) {
	s3, proxy, store := throughProxy(t)
	proxy.Spoil(func(r *http.Request) testenv.Fault {
		if r.URL.Query().Has("partNumber") {
			return testenv.Hangs
		}
		return testenv.NoFault
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	began := time.Now()
	if err := store.Create(ctx, "a", writeIn(1<<20, content(2*partBytes))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if took := time.Since(began); took > 5*time.Second+testenv.Patience {
		t.Errorf("it took %v", took)
	}
	if left := unfinished(t, s3); len(left) > 0 {
		t.Errorf("unfinished uploads are left: %v", left)
	}
	if archive.Away(store) != nil {
		t.Error("a write that was cancelled is taken for an outage")
	}
}

// TestDeleteForgetsUploadsThatACrashLeft begins an upload under the name of a file and never ends it. An upload of another file stays.
func TestDeleteForgetsUploadsThatACrashLeft(t *testing.T) {
	s3 := testenv.StartS3(t)
	store := openStore(t, s3.Archive(s3.Addr))
	client := s3.Client(t)
	for _, key := range []string{"logs/of/a/test/v1/a", "logs/of/a/test/v1/a2"} {
		id, err := client.NewMultipartUpload(t.Context(), s3.Bucket, key, minio.PutObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.PutObjectPart(t.Context(), s3.Bucket, key, id, 1, bytes.NewReader(content(partBytes)), partBytes, minio.PutObjectPartOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Delete(t.Context(), "v1/a"); err != nil {
		t.Fatal(err)
	}
	if left := unfinished(t, s3); len(left) != 1 || left[0] != "logs/of/a/test/v1/a2" {
		t.Errorf("unfinished uploads: %v, want that of the other file alone", left)
	}
}

func TestDeleteNeedsNoRightToSeeUploads(t *testing.T) {
	_, proxy, store := throughProxy(t)
	if err := store.Create(t.Context(), "a", writeIn(10, content(10))); err != nil {
		t.Fatal(err)
	}
	proxy.Spoil(func(r *http.Request) testenv.Fault {
		if r.URL.Query().Has("uploads") {
			return testenv.Denies
		}
		return testenv.NoFault
	})
	if err := store.Delete(t.Context(), "a"); err != nil || !isGone(t, store, "a") {
		t.Errorf("got %v", err)
	}
}

func TestAReadOfABucketAsksForWholeBlocks(t *testing.T) {
	_, proxy, store := throughProxy(t)
	const size = 20 << 20
	data := content(size)
	if err := store.Create(t.Context(), "a", writeIn(1<<20, data)); err != nil {
		t.Fatal(err)
	}
	object, err := store.Open(t.Context(), "a", size)
	if err != nil {
		t.Fatal(err)
	}
	proxy.SpoilAll(testenv.NoFault)
	page := make([]byte, 64<<10)
	for at := int64(0); at+int64(len(page)) < size; at += int64(len(page)) {
		if _, err := object.ReadAt(t.Context(), page, at); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(page, data[at:at+int64(len(page))]) {
			t.Fatalf("other bytes at %d", at)
		}
	}
	// A block, then four at a time.
	if n := proxy.Requests(); n > 1+(19+3)/4 {
		t.Errorf("%d requests for 20 blocks in order", n)
	}
	// The store keeps 16 MiB. The last blocks are among them.
	before := proxy.Requests()
	if _, err := object.ReadAt(t.Context(), page, size-3<<20); err != nil || proxy.Requests() > before {
		t.Errorf("a block that was just read is read again: %v", err)
	}
	if _, err := object.ReadAt(t.Context(), page, 0); err != nil || proxy.Requests() == before {
		t.Errorf("a block of long ago is still kept: %v", err)
	}
	if err := object.Close(); err != nil {
		t.Error(err)
	}
}

// TestWrongSettingsOfABucketAreNamed has what no waiting mends. None is taken for an outage.
func TestWrongSettingsOfABucketAreNamed(t *testing.T) {
	s3 := testenv.StartS3(t)
	right := s3.Archive(s3.Addr)
	for name, c := range map[string]struct {
		change func(*config.Archive)
		want   string
	}{
		"key":    {func(a *config.Archive) { a.ArchiveKeyID = "AKIAIOSFODNN7EXAMPLE" }, "does not know the key in AWS_ACCESS_KEY_ID"},
		"secret": {func(a *config.Archive) { a.ArchiveSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" }, "AWS_SECRET_ACCESS_KEY is not that of"},
		"bucket": {func(a *config.Archive) {
			a.ArchiveURL = config.ArchiveURL("s3://nosuchbucket?endpoint=http://" + s3.Addr)
		}, "the bucket nosuchbucket at " + s3.Addr + " does not exist"},
	} {
		settings := right
		c.change(&settings)
		store := openStore(t, settings)
		for what, check := range map[string]func(context.Context, archive.Store) error{"read": archive.CheckReadable, "write": archive.CheckWritable} {
			err := check(t.Context(), store)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "ARCHIVE_URL: ") || errors.As(err, new(*archive.AwayError)) {
				t.Errorf("%s, %s: got %v, want %q", name, what, err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), string(settings.ArchiveSecret)) {
				t.Errorf("%s, %s: the error tells the secret: %v", name, what, err)
			}
		}
	}
	for _, settings := range []config.Archive{
		{ArchiveURL: right.ArchiveURL, ArchiveKeyID: right.ArchiveKeyID}, {ArchiveURL: right.ArchiveURL, ArchiveSecret: right.ArchiveSecret},
	} {
		if _, err := archive.OpenStore(settings, 1<<20); err == nil || !strings.Contains(err.Error(), "is not") {
			t.Errorf("half a key: got %v", err)
		}
	}
}

// writeCertificate writes a certificate that signs itself, for 127.0.0.1, and its key. It returns the files.
func writeCertificate(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	privateDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(t.TempDir(), "certificate.pem"), filepath.Join(t.TempDir(), "key.pem")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: privateDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

func TestABucketBehindTLSInAnotherRegion(t *testing.T) {
	certificate, key := writeCertificate(t)
	other, _ := writeCertificate(t)
	t.Setenv("SSL_CERT_FILE", other)
	unknown := openStore(t, config.Archive{ArchiveURL: "s3://archive?endpoint=https://" + config.ArchiveURL(startTLS(t, certificate, key)), ArchiveKeyID: "a", ArchiveSecret: "b"})
	if err := archive.CheckReadable(t.Context(), unknown); err == nil || !strings.Contains(err.Error(), "SSL_CERT_FILE") || errors.As(err, new(*archive.AwayError)) {
		t.Errorf("a certificate that nobody trusts: got %v", err)
	}
	t.Setenv("SSL_CERT_FILE", certificate)
	s3 := testenv.StartS3TLS(t, "eu-central-1", certificate, key)
	store := openStore(t, s3.Archive(s3.Addr))
	if err := archive.CheckWritable(t.Context(), store); err != nil {
		t.Error(err)
	}
	if err := store.Create(t.Context(), "a", writeIn(1<<20, content(partBytes+5))); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t.Context(), store, "a", partBytes+5); err != nil || !bytes.Equal(got, content(partBytes+5)) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// startTLS returns the address of a server with a certificate, which ends with the test.
func startTLS(t *testing.T, certificate, key string) (addr string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that don't trust it
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// TestTheWatchTellsThatAStoreIsAwayAndBack has nobody but the watch use the store meanwhile.
func TestTheWatchTellsThatAStoreIsAwayAndBack(t *testing.T) {
	s3, proxy, store := throughProxy(t)
	var out testenv.Output
	gauge := archive.NewAwayGauge()
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		archive.Watch(ctx, store, gauge, slog.New(slog.NewTextHandler(&out, nil)))
	}()
	defer func() {
		cancel()
		<-watched
	}()
	proxy.SpoilAll(testenv.SlowDown)
	if _, err := readAll(t.Context(), store, "a", 10); !errors.As(err, new(*archive.AwayError)) {
		t.Fatalf("got %v, want that the store is away", err)
	}
	testenv.Eventually(t, 10*time.Second, "the log says that the store is away", func() bool { return strings.Contains(out.String(), "can't be used\"") })
	proxy.SpoilAll(testenv.NoFault)
	testenv.Eventually(t, 10*time.Second, "the log says that the store is back", func() bool { return strings.Contains(out.String(), "can be used again") })
	if archive.Away(store) != nil {
		t.Error("the store is back, and still said to be away")
	}
	if strings.Contains(out.String(), s3.Secret) {
		t.Errorf("the log tells the secret: %s", out.String())
	}
}

func TestAFolderIsNeverAway(t *testing.T) {
	store := archive.Folder(filepath.Join(t.TempDir(), "none"))
	if err := archive.CheckReadable(t.Context(), store); err != nil {
		t.Error(err)
	}
	archive.Watch(t.Context(), store, nil, slog.New(slog.DiscardHandler)) // returns at once
	if archive.Away(store) != nil {
		t.Error("a folder is away")
	}
}
