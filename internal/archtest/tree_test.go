package archtest

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// source is one Go file.
type source struct {
	file string // path from the module's root, with slashes
	pkg  string // its directory, likewise
	test bool   // a _test.go file
	fset *token.FileSet
	ast  *ast.File
}

// tree is the module, or a part of it that a test made up.
type tree struct {
	module string // the module's path
	files  []source
}

// outside reports whether the file stands outside of floors and doors.
func (s source) outside() bool { return strings.HasPrefix(s.file, outside) }

// production reports whether the file is part of the house and not a test.
func (s source) production() bool { return !s.test && !s.outside() }

// testing reports whether the file serves tests only: a test, or part of a package whose name ends so (a contract suite,
// a fake for tests).
func (s source) testing() bool { return s.test || strings.HasSuffix(s.pkg, "test") }

// line returns the line of a position.
func (s source) line(p token.Pos) int { return s.fset.Position(p).Line }

// imports calls fn for each import of the file.
func (s source) imports(fn func(spec *ast.ImportSpec, imported string)) {
	for _, spec := range s.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			fn(spec, p)
		}
	}
}

// nameOf returns under which name the file imports a package of the standard library, and whether it does.
func (s source) nameOf(imported string) (string, bool) {
	name, found := "", false
	s.imports(func(spec *ast.ImportSpec, p string) {
		if p != imported {
			return
		}
		name, found = path.Base(p), true
		if spec.Name != nil {
			name = spec.Name.Name
		}
	})
	return name, found
}

// parse reads one file; src is nil (read it from disk below root) or its text.
func parse(fset *token.FileSet, root, file string, src any) (source, error) {
	f, err := parser.ParseFile(fset, filepath.Join(root, filepath.FromSlash(file)), src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return source{}, fmt.Errorf("cannot parse %s: %w", file, err)
	}
	return source{file: file, pkg: path.Dir(file), test: strings.HasSuffix(file, "_test.go"), fset: fset, ast: f}, nil
}

// load reads every Go file of the module at root. Modules inside it (tools) are others' business.
func load(root string) (tree, error) {
	module, err := modulePath(filepath.Join(root, "go.mod"))
	if err != nil {
		return tree{}, err
	}
	t := tree{module: module}
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != root && skipped(p, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		s, err := parse(fset, root, filepath.ToSlash(rel), nil)
		t.files = append(t.files, s)
		return err
	})
	return t, err
}

// skipped reports whether the Go tool, too, would leave this directory out of the module.
func skipped(dir, name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "vendor" {
		return true
	}
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// modulePath returns the path that a go.mod names.
func modulePath(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "module "); ok {
			return strings.TrimSpace(name), nil
		}
	}
	return "", fmt.Errorf("%s names no module", file)
}
