package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
)

// Archive holds the settings of the services that share the archive.
type Archive struct {
	ArchiveURL    ArchiveURL `env:"ARCHIVE_URL" help:"Where the archive keeps its files: a folder that worker and query service share, or a bucket of an S3 store, as in s3://bucket/prefix?endpoint=https://s3.example.com&region=eu-central-1; empty: there is no archive."`
	ArchiveKeyID  ArchiveKey `env:"AWS_ACCESS_KEY_ID" help:"Name of the key for the archive's S3 store; empty: the machine's role, a web identity or AWS_SHARED_CREDENTIALS_FILE gives one."`
	ArchiveSecret ArchiveKey `env:"AWS_SECRET_ACCESS_KEY" help:"The key that AWS_ACCESS_KEY_ID names."`
	ArchiveToken  ArchiveKey `env:"AWS_SESSION_TOKEN" help:"The token that comes with a key which ends after some hours; empty: the key has none."`
}

type (
	archiveStore struct{}
	archiveKey   struct{}
)

type (
	// ArchiveURL is the file or s3 URL of the archive's store.
	ArchiveURL = Secret[archiveStore]

	// ArchiveKey is a part of the key to the archive's store.
	ArchiveKey = Secret[archiveKey]
)

func (archiveStore) takes() string {
	return "a URL such as file:///var/lib/millrace/archive or s3://bucket/prefix"
}

func (archiveStore) check(value string) error {
	_, err := PlaceOf(ArchiveURL(value))
	return err
}

func (archiveKey) takes() string { return "a key of an S3 store" }

func (archiveKey) check(value string) error {
	if strings.Trim(value, " \t\r\n") != value || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New("holds a space, the end of a line, or a character beyond ASCII, and no key does")
	}
	return nil
}

// ArchivePlace is where an archive's files are: in a folder, or in a bucket.
type ArchivePlace struct {
	Folder string

	Bucket, Prefix string
	Endpoint       string // host or host:port; empty: Amazon's
	Plain          bool   // the endpoint speaks http without TLS
	Region         string // empty: the store's own choice
}

// PlaceOf returns the place that a URL names. The error repeats nothing of the URL.
func PlaceOf(u ArchiveURL) (p ArchivePlace, err error) {
	parts, err := parseURL(string(u), "file://", "s3://")
	switch {
	case err != nil:
		return p, err
	case parts.user != "":
		return p, errors.New("holds a user or password; the keys of an S3 store are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	if strings.EqualFold(parts.scheme, "file") {
		switch {
		case strings.Contains(string(u), "?"):
			return p, errors.New("has parameters, and a folder has none")
		case parts.hosts != "":
			return p, errors.New("names a host; a folder's URL has three slashes, as in file:///var/lib/millrace/archive")
		case path.Clean("/"+parts.path) == "/":
			return p, errors.New("names no folder")
		}
		folder, err := url.PathUnescape(parts.path)
		return ArchivePlace{Folder: path.Clean(folder)}, err
	}
	if n := len(parts.hosts); n < 3 || n > 63 || strings.Trim(parts.hosts, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return p, errors.New("names no bucket: 3 to 63 of a-z, 0-9, dot and hyphen")
	}
	p.Bucket, p.Prefix = parts.hosts, strings.Trim(parts.path, "/")
	if p.Prefix != "" && path.Clean(p.Prefix) != p.Prefix || strings.HasPrefix(p.Prefix, "..") || strings.Contains(p.Prefix, "%") {
		return p, errors.New("has a prefix with an empty part, dots alone, or an escaped character")
	}
	for _, one := range parts.parameters {
		switch one.name {
		case "endpoint":
			if err := p.setEndpoint(one.value); err != nil {
				return p, fmt.Errorf("endpoint: %w", err)
			}
		case "region":
			if one.value == "" || strings.Trim(one.value, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
				return p, errors.New("region: takes a name such as eu-central-1")
			}
			p.Region = one.value
		default:
			return p, errors.New("has a parameter other than endpoint and region")
		}
	}
	if p.Endpoint != "" {
		p.Region = cmp.Or(p.Region, "us-east-1") // what stores other than Amazon's take as a rule
	}
	return p, nil
}

// setEndpoint sets the endpoint that an http or https URL names, or host:port alone, which means https.
func (p *ArchivePlace) setEndpoint(value string) error {
	if !strings.Contains(value, "://") {
		value = "https://" + value
	}
	u, err := parseURL(value, "http://", "https://")
	switch {
	case err != nil:
		return err
	case u.user != "" || u.query != "" || strings.Trim(u.path, "/") != "":
		return errors.New("takes no more than scheme, host and port, as in https://s3.example.com")
	}
	p.Endpoint, p.Plain = u.hosts, strings.EqualFold(u.scheme, "http")
	return u.requireHost()
}
