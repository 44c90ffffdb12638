package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// benchGreen runs the program of pkg/green's figures; its own table is the report.
func benchGreen(ctx context.Context, e *env) (report, error) {
	cmd := exec.CommandContext(ctx, "go", "run", "./green", "-rounds", fmt.Sprint(e.rounds))
	cmd.Dir = filepath.Join(e.root, "test", "bench")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := cmd.Run()
	var missed *exec.ExitError
	if err != nil && !errors.As(err, &missed) {
		return report{}, err
	}
	r := report{text: out.String()}
	r.want(err == nil, "the targets above", "all in one run")
	return r, nil
}
