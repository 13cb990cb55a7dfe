package repo

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocLinks checks that relative links in the documents lead to files.
func TestDocLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	for _, name := range files(t, ".md") {
		for _, match := range link.FindAllStringSubmatch(read(t, name), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			target := path.Join(path.Dir(name), match[1])
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s: %v", name, match[1], err)
			}
		}
	}
}

// TestDocNames checks that the make targets, packages and files that the
// documents name are there.
func TestDocNames(t *testing.T) {
	makefile := read(t, "Makefile")
	target := regexp.MustCompile("`(?:[A-Z_]+=\\S+ )*make ([a-z][a-z0-9-]*)")
	place := regexp.MustCompile("`((?:cmd|deploy|docs|internal|pkg|test|tools)/[a-zA-Z0-9_./-]*)`")
	for _, name := range files(t, ".md") {
		content := read(t, name)
		for _, match := range target.FindAllStringSubmatch(content, -1) {
			if !strings.Contains(makefile, "\n"+match[1]+":") {
				t.Errorf("%s names `make %s`, which the Makefile does not have", name, match[1])
			}
		}
		for _, match := range place.FindAllStringSubmatch(content, -1) {
			if _, err := os.Stat(filepath.Join(root, match[1])); err != nil {
				t.Errorf("%s names %s: %v", name, match[1], err)
			}
		}
	}
}

// TestDocTablesNameOnce checks that no table of the architecture describes a
// package twice.
func TestDocTablesNameOnce(t *testing.T) {
	const name = "docs/architecture.md"
	row := regexp.MustCompile("^\\| `((?:cmd|internal|pkg)/[a-z/-]+)` \\|")
	for table := range strings.SplitSeq(read(t, name), "\n\n") {
		seen := map[string]bool{}
		for line := range strings.Lines(table) {
			match := row.FindStringSubmatch(line)
			if match == nil {
				continue
			}
			if seen[match[1]] {
				t.Errorf("%s has two rows for %s", name, match[1])
			}
			seen[match[1]] = true
		}
	}
}

// TestNoMachinePaths checks that nothing depends on where someone once worked.
func TestNoMachinePaths(t *testing.T) {
	// Folders of a home or a checkout; the parts are joined here so that this
	// file passes its own test.
	machine := regexp.MustCompile(`(^|[^\w.$)}/*-])/(` + strings.Join([]string{"work", "home", "Users", "root"}, "|") + `)/\w`)
	for _, name := range files(t, ".go", ".md", ".sh", ".yml", ".yaml", ".json", ".txt", ".golden", "run", "Makefile", "go.mod") {
		for number, line := range strings.Split(read(t, name), "\n") {
			if machine.MatchString(line) {
				t.Errorf("%s:%d holds a path of one machine: %s", name, number+1, strings.TrimSpace(line))
			}
		}
	}
}
