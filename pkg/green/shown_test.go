package green_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Every exported name is shown in an example.
func TestEveryExportedNameIsShown(t *testing.T) {
	var examples strings.Builder
	for _, name := range []string{"example_test.go", "example_greenlet_test.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		examples.Write(text)
	}
	for _, name := range exportedNames(t) {
		if !regexp.MustCompile(`\b(Example)?` + name + `\b`).MatchString(examples.String()) {
			t.Errorf("no example shows %s", name)
		}
	}
}

func exportedNames(t *testing.T) []string {
	t.Helper()
	noTests := func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }
	files := token.NewFileSet()
	packages, err := parser.ParseDir(files, ".", noTests, 0) //nolint:staticcheck // files of one package, without build tags
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range packages["green"].Files {
		for _, decl := range file.Decls {
			for _, id := range declared(decl) {
				if id.IsExported() {
					names = append(names, id.Name)
				}
			}
		}
	}
	if len(names) < 50 {
		t.Fatalf("only %d exported names found: %v", len(names), names)
	}
	return names
}

func declared(decl ast.Decl) (ids []*ast.Ident) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil || receiverExported(d.Recv.List[0].Type) {
			ids = append(ids, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				ids = append(ids, s.Name)
			case *ast.ValueSpec:
				ids = append(ids, s.Names...)
			}
		}
	}
	return ids
}

func receiverExported(expr ast.Expr) bool {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return receiverExported(e.X)
	case *ast.IndexExpr:
		return receiverExported(e.X)
	case *ast.IndexListExpr:
		return receiverExported(e.X)
	case *ast.Ident:
		return e.IsExported()
	default:
		return false
	}
}
