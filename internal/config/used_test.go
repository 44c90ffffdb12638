package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/internal/config"
)

// An option that nothing reads would be a promise that nobody keeps.
func TestEveryOptionIsRead(t *testing.T) {
	var code strings.Builder
	for _, pattern := range []string{"*.go", "../../cmd/compute-agent/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(raw)
		}
	}
	for section := range reflect.TypeFor[config.Config]().Fields() {
		for f := range section.Type.Fields() {
			if !regexp.MustCompile(`\.` + f.Name + `\b`).MatchString(code.String()) {
				t.Errorf("%s.%s is not read anywhere", section.Tag.Get("key"), f.Tag.Get("key"))
			}
		}
	}
}
