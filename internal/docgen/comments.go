package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
)

// comments are the comments of struct fields, by Type.Field.
type comments map[string]string

// readComments reads the comments of the packages that hold the bodies of the wire.
func readComments(root string, packages ...string) (comments, error) {
	all := comments{}
	for _, dir := range packages {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			if err := all.read(file); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func (c comments) read(file string) error {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if body, ok := spec.Type.(*ast.StructType); ok {
				c.fields(spec.Name.Name, body)
			}
		}
		return true
	})
	return nil
}

func (c comments) fields(typeName string, body *ast.StructType) {
	for _, f := range body.Fields.List {
		text := strings.TrimSpace(f.Comment.Text())
		if text == "" {
			text = strings.TrimSpace(f.Doc.Text())
		}
		for _, name := range f.Names {
			c[typeName+"."+name.Name] = strings.Join(strings.Fields(text), " ")
		}
	}
}
