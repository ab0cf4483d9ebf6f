package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// documents have a block between <!-- bench: short --> or <!-- bench: all --> and <!-- /bench --> that is made of the
// results it names.
var (
	documents = []string{"README.md", "bench/README.md"}
	block     = regexp.MustCompile(`(?s)<!-- bench: (short|all) -->\n.*?<!-- /bench -->`)
	named     = regexp.MustCompile(`\(((?:bench/)?results/[^)]*\.txt)\)`)
)

// updateDocuments makes the documents in dir show the results of a file. results is the file's path from dir.
func updateDocuments(dir, results string) error {
	text, err := os.ReadFile(filepath.Join(dir, results))
	if err != nil {
		return err
	}
	all, err := read(bytes.NewReader(text), nil)
	if err != nil {
		return err
	}
	if missing := missing(all); len(missing) > 0 {
		return fmt.Errorf("%s lacks %s", results, strings.Join(missing, ", "))
	}
	if err := os.WriteFile(filepath.Join(dir, pictureOf(results)), bars(all), 0o644); err != nil {
		return err
	}
	for _, name := range documents {
		file := filepath.Join(dir, name)
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !block.Match(text) {
			return fmt.Errorf("%s has no block of benchmarks", file)
		}
		link := strings.TrimPrefix(results, folderOf(name))
		if err := os.WriteFile(file, show(text, link, all), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// folderOf returns the folder of a document with its slash, "" for the top.
func folderOf(document string) string {
	folder, _ := path.Split(document)
	return folder
}

// show returns a document's text with results in its block. link is the results' file as the document links to it.
func show(text []byte, link string, results []result) []byte {
	return block.ReplaceAllFunc(text, func(old []byte) []byte {
		short := string(block.FindSubmatch(old)[1]) == "short"
		var b bytes.Buffer
		if short {
			fmt.Fprintf(&b, "<!-- bench: short -->\n![Each figure beside its ceiling](%s)\n\n", pictureOf(link))
		} else {
			fmt.Fprint(&b, "<!-- bench: all -->\n")
		}
		fmt.Fprintf(&b, "From [%s](%s), %d cores (%s):\n\n| what | figure | ceiling | ratio |\n| --- | --- | --- | --- |\n",
			path.Base(link), link, results[0].cores, results[0].cpu)
		before := ""
		for _, l := range lines {
			i := slices.IndexFunc(results, func(r result) bool { return r.name == l.name })
			if l.what == "" || i < 0 || short && !l.short {
				continue
			}
			fmt.Fprintf(&b, "| %s | %s |\n", l.what, l.cells(results[i], before))
			before = l.ceiling
		}
		fmt.Fprint(&b, "<!-- /bench -->")
		return b.Bytes()
	})
}

// cells returns the cells of a line: the figure, the ceiling, which may be that of the line before, and the ratio.
func (l line) cells(r result, before string) string {
	unit := r.figure()
	if unit == "" {
		return l.told(r, r.told()...) + " | |"
	}
	figure := number(r.values[unit]) + " " + unit
	if also := l.told(r, l.also...); also != "" {
		figure += "; " + also
	}
	ceiling := l.ceiling
	if ceiling == before {
		ceiling = "the same"
	}
	return fmt.Sprintf("%s | %s, %s %s | %.2f", figure, ceiling, number(r.values["ceiling-"+unit]), unit, r.values["ratio"])
}

// told returns those units of a result without a ceiling that documents have words for.
func (r result) told() (units []string) {
	for _, unit := range r.units {
		if _, ok := words[unit]; ok {
			units = append(units, unit)
		}
	}
	slices.Sort(units)
	return units
}

// check returns an error if a document in dir differs from the results that it names.
func check(dir, name string) error {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	found := named.FindSubmatch(block.Find(text))
	if found == nil {
		return errors.New("it has no block of benchmarks that names a file of results")
	}
	link := string(found[1])
	file := folderOf(name) + link
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	results, err := read(bytes.NewReader(raw), nil)
	if err != nil {
		return err
	}
	if !bytes.Equal(show(text, link, results), text) {
		return fmt.Errorf("its figures are not those of %s; go run ./bench/report -update %s writes them anew", file, file)
	}
	picture, err := os.ReadFile(filepath.Join(dir, pictureOf(file)))
	if err != nil {
		return err
	}
	if !bytes.Equal(picture, bars(results)) {
		return fmt.Errorf("%s is not the picture of %s", pictureOf(file), file)
	}
	return nil
}
