package testenv

import (
	"context"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"millrace/internal/config"
)

// S3 is a server of S3 with one empty bucket. It ends with the test.
type S3 struct {
	Addr, Region   string
	Bucket         string
	KeyID, Secret  string
	program        string
	root           string
	certificate    [2]string // files: certificate and key; empty: it speaks http
	process        *exec.Cmd
	processHasDied chan struct{}
}

// StartS3 starts a server in the region us-east-1 that speaks http. The program is what make s3server builds; without it the test is skipped, or
// fails if CI is set.
func StartS3(t testing.TB) *S3 { return startS3(t, "us-east-1", "", "") }

// StartS3TLS starts a server in a region that speaks https, with a certificate and its key in files.
func StartS3TLS(t testing.TB, region, certificate, key string) *S3 {
	return startS3(t, region, certificate, key)
}

func startS3(t testing.TB, region, certificate, key string) *S3 {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	program := FindProgram("versitygw", filepath.Join(filepath.Dir(here), "../../bin/versitygw"))
	if program == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("there is no bin/versitygw: run make s3server")
		}
		t.Skip("there is no bin/versitygw: run make s3server")
	}
	s := &S3{
		Addr: FreeAddress(t), Region: region, Bucket: "archive", KeyID: "AK" + rand.Text(), Secret: rand.Text() + "/+" + rand.Text(),
		program: program, root: t.TempDir(), certificate: [2]string{certificate, key},
	}
	for _, folder := range []string{"data", "sidecar"} {
		if err := os.Mkdir(filepath.Join(s.root, folder), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	s.Start(t)
	t.Cleanup(func() { s.Stop(t) })
	if err := s.Client(t).MakeBucket(context.Background(), s.Bucket, minio.MakeBucketOptions{Region: region}); err != nil {
		t.Fatal(err)
	}
	return s
}

// Start starts the server again after Stop, at the same address and with the same files.
func (s *S3) Start(t testing.TB) {
	t.Helper()
	args := []string{"--port", s.Addr, "--region", s.Region, "--quiet"}
	if s.certificate[0] != "" {
		args = append(args, "--cert", s.certificate[0], "--key", s.certificate[1])
	}
	// A folder beside the files has what the server knows of them: not every file system has extended attributes.
	args = append(args, "posix", "--sidecar", filepath.Join(s.root, "sidecar"), filepath.Join(s.root, "data"))
	s.process = exec.Command(s.program, args...)
	s.process.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.KeyID, "ROOT_SECRET_KEY="+s.Secret)
	s.process.Dir = s.root
	var log Output
	s.process.Stdout, s.process.Stderr = &log, &log
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	died := make(chan struct{})
	s.processHasDied = died
	go func() {
		_ = s.process.Wait() // it is killed
		close(died)
	}()
	Eventually(t, 10*time.Second, "the S3 server answers", func() bool {
		select {
		case <-died:
			t.Fatalf("%s has ended: %s", s.program, log.String())
		default:
		}
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

// Stop kills the server. Its files stay.
func (s *S3) Stop(t testing.TB) {
	t.Helper()
	_ = s.process.Process.Kill() // it may have ended
	<-s.processHasDied
}

// Client returns a client of the server.
func (s *S3) Client(t testing.TB) *minio.Core {
	t.Helper()
	transport, err := minio.DefaultTransport(s.certificate[0] != "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := minio.NewCore(s.Addr, &minio.Options{
		Creds: credentials.NewStaticV4(s.KeyID, s.Secret, ""), Secure: s.certificate[0] != "", Region: s.Region, Transport: transport,
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Archive returns the settings of an archive in the bucket, under a prefix, through a server at addr: its own, or a FaultyProxy's.
func (s *S3) Archive(addr string) config.Archive {
	scheme := "http"
	if s.certificate[0] != "" {
		scheme = "https"
	}
	return config.Archive{
		ArchiveURL:   config.ArchiveURL("s3://" + s.Bucket + "/logs/of/a/test?endpoint=" + scheme + "://" + addr + "&region=" + s.Region),
		ArchiveKeyID: config.ArchiveKey(s.KeyID), ArchiveSecret: config.ArchiveKey(s.Secret),
	}
}

// Env returns the settings that Archive returns, as the environment of a process.
func (s *S3) Env(addr string) []string {
	a := s.Archive(addr)
	return []string{"ARCHIVE_URL=" + string(a.ArchiveURL), "AWS_ACCESS_KEY_ID=" + string(a.ArchiveKeyID), "AWS_SECRET_ACCESS_KEY=" + string(a.ArchiveSecret)}
}
