// SPDX-License-Identifier: Apache-2.0

package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table of the configuration into README.md")

const (
	module     = "github.com/tcbee/tcbee-export"
	readme     = "../README.md"
	tableBegin = "<!-- configuration: made by go test ./config -update -->\n"
	tableEnd   = "<!-- end of configuration -->\n"
)

// TestReadmeListsTheConfiguration holds the README's table to the code: the keys and defaults to the structs,
// the meanings to the comments of their fields.
func TestReadmeListsTheConfiguration(t *testing.T) {
	var b strings.Builder
	b.WriteString(tableBegin)
	b.WriteString("| key | default | meaning |\n|---|---|---|\n")
	docs := docReader{}
	for i, s := range Settings(Default(), Origins{}) {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Key, code(s.Value), docs.of(t, &table().keys[i]))
	}
	b.WriteString(tableEnd)

	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), tableBegin)
	require.True(t, ok, "README.md has no line %q", tableBegin)
	_, after, ok := strings.Cut(rest, tableEnd)
	require.True(t, ok, "README.md has no line %q", tableEnd)
	want := before + b.String() + after
	if *update {
		require.NoError(t, os.WriteFile(readme, []byte(want), 0o644))
		return
	}
	require.Empty(t, cmp.Diff(want, string(text)), "run: go test ./config -update")
}

// code writes a default for the table.
func code(v any) string {
	switch x := v.(type) {
	case string:
		if x == "" {
			return ""
		}
	case []any:
		var words []string
		for _, w := range x {
			words = append(words, fmt.Sprintf("`%v`", w))
		}
		return strings.Join(words, ", ")
	case map[string]any:
		if len(x) == 0 {
			return ""
		}
	}
	return fmt.Sprintf("`%v`", v)
}

// docReader knows the comments of struct fields, by type and field.
type docReader map[reflect.Type]map[string]string

func (d docReader) of(t *testing.T, k *Key) string {
	t.Helper()
	if d[k.owner] == nil {
		d[k.owner] = fieldDocs(t, k.owner)
	}
	doc := d[k.owner][k.field]
	require.NotEmpty(t, doc, "%s (%s.%s) has no comment that could tell its meaning", k.Path, k.owner, k.field)
	// Readers know the keys, not the names of Go fields.
	for i := range k.owner.NumField() {
		f := k.owner.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("mapstructure"), ",")
		if name == "" || name == "-" {
			continue
		}
		if rest, ok := strings.CutPrefix(doc, f.Name+" "); ok {
			doc = "`" + name + "` " + rest
		}
		if camel.MatchString(f.Name) {
			doc = regexp.MustCompile(`\b`+f.Name+`\b`).ReplaceAllString(doc, "`"+name+"`")
		}
	}
	if k.Type.Kind() == reflect.String && k.Type.PkgPath() != "" {
		doc = strings.TrimSuffix(seeType.ReplaceAllString(doc, ""), ".")
		var words []string
		for _, w := range constants(t, k.Type) {
			words = append(words, "`"+w+"`")
		}
		doc += ": " + strings.Join(words, ", ") + "."
	}
	return doc
}

var (
	camel   = regexp.MustCompile(`^[A-Z].*[a-z].*[A-Z]`)
	seeType = regexp.MustCompile(`,? see [A-Z][A-Za-z]+\.?$`)
)

// constants returns the values of the constants of a string type, in the order of the source.
func constants(t *testing.T, typ reflect.Type) []string {
	t.Helper()
	var out []string
	for _, f := range parse(t, typ) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); ok && id.Name == typ.Name() {
				for _, v := range spec.Values {
					if lit, ok := v.(*ast.BasicLit); ok {
						word, err := strconv.Unquote(lit.Value)
						require.NoError(t, err)
						out = append(out, word)
					}
				}
			}
			return true
		})
	}
	require.NotEmpty(t, out, "%s has no constants", typ)
	return out
}

// parse reads the files of the package that declares a type.
func parse(t *testing.T, typ reflect.Type) []*ast.File {
	t.Helper()
	dir, ok := strings.CutPrefix(typ.PkgPath(), module+"/")
	require.True(t, ok, "%s is not of this module", typ)
	names, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
	require.NoError(t, err)
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		files = append(files, f)
	}
	return files
}

var docLink = regexp.MustCompile(`\[([A-Za-z][A-Za-z0-9_.]*)\]`)

// fieldDocs reads the comments of a struct's fields. A field without one shares that of the field above.
func fieldDocs(t *testing.T, typ reflect.Type) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, f := range parse(t, typ) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != typ.Name() {
				return true
			}
			s, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			last := ""
			for _, field := range s.Fields.List {
				text := field.Doc.Text()
				if text == "" {
					text = field.Comment.Text()
				}
				text, _, _ = strings.Cut(text, "\n\n")
				text = strings.Join(strings.Fields(text), " ")
				text = docLink.ReplaceAllString(text, "$1")
				text = strings.ReplaceAll(text, "|", `\|`)
				if text == "" {
					text = last
				}
				last = text
				for _, id := range field.Names {
					docs[id.Name] = text
				}
			}
			return false
		})
	}
	return docs
}
