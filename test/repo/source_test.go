package repo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestPackageDocs checks that every package says what it owns, in one place,
// and is not named after a drawer.
func TestPackageDocs(t *testing.T) {
	drawers := []string{"base", "common", "core", "helper", "helpers", "lib", "manager", "misc", "shared", "types", "util", "utils"}
	for _, p := range goList(t, "linux", "./...") {
		if len(p.GoFiles) == 0 {
			continue
		}
		if slices.Contains(drawers, p.Name) {
			t.Errorf("package %s: name it after what it provides", p.Path())
		}
		var documented []string
		for _, name := range p.GoFiles {
			file := parse(t, filepath.Join(p.Dir, name))
			if file.Doc != nil {
				documented = append(documented, name)
			}
		}
		if len(documented) != 1 {
			t.Errorf("package %s: package comments in %v, want exactly one", p.Path(), documented)
		}
		if p.Name != "main" && !strings.HasPrefix(p.Doc, "Package "+p.Name+" ") {
			t.Errorf("package %s: its comment begins %q, want %q", p.Path(), p.Doc, "Package "+p.Name+" ...")
		}
	}
}

// TestForbiddenCalls checks the calls that hide what they do: programs started
// behind the kernel's back, and tests that hope something takes no longer.
func TestForbiddenCalls(t *testing.T) {
	for _, name := range files(t, ".go") {
		file := parse(t, filepath.Join(root, name))
		inTest := strings.HasSuffix(name, "_test.go")
		if !inTest && !under(name, "test") && imports(file, "os/exec") {
			t.Errorf("%s imports os/exec: programs of ours start no other programs", name)
		}
		if inTest {
			for _, line := range blindSleeps(file) {
				t.Errorf("%s:%d: time.Sleep in a test: poll a condition with a deadline", name, line)
			}
		}
	}
}

// TestFileLength keeps one subject to a file.
func TestFileLength(t *testing.T) {
	const longest = 500
	for _, name := range files(t, ".go") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		if lines := strings.Count(read(t, name), "\n"); lines > longest {
			t.Errorf("%s has %d lines, more than %d: split it by subject", name, lines, longest)
		}
	}
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(fileSet, path, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

var fileSet = token.NewFileSet()

func imports(file *ast.File, path string) bool {
	return slices.ContainsFunc(file.Imports, func(spec *ast.ImportSpec) bool {
		return spec.Path.Value == strconv.Quote(path)
	})
}

// blindSleeps returns the lines on which file sleeps in the hope that something
// has happened by then. Two sleeps are no such hope: the pause of a loop that
// watches a deadline, and one on the clock of testing/synctest.
func blindSleeps(file *ast.File) []int {
	if imports(file, "testing/synctest") {
		return nil
	}
	var lines []int
	ast.Inspect(file, func(node ast.Node) bool {
		switch n := node.(type) {
		case *ast.ForStmt:
			if mentions(n, "", "After") || mentions(n, "", "Before") || mentions(n, "", "Err") {
				return false
			}
		case *ast.SelectorExpr:
			if mentions(n, "time", "Sleep") {
				lines = append(lines, fileSet.Position(n.Pos()).Line)
			}
		}
		return true
	})
	return lines
}

// mentions tells whether pkg.name stands somewhere in node; an empty pkg means
// a method or function of any.
func mentions(node ast.Node, pkg, name string) bool {
	found := false
	ast.Inspect(node, func(node ast.Node) bool {
		selector, ok := node.(*ast.SelectorExpr)
		if ok && selector.Sel.Name == name {
			ident, ok := selector.X.(*ast.Ident)
			found = found || pkg == "" || ok && ident.Name == pkg
		}
		return !found
	})
	return found
}
