package main

import (
	"context"
	"errors"
)

func benchMonitors(ctx context.Context, e *env) (report, error) { return report{}, errors.New("x") }
func benchLab(ctx context.Context, e *env) (report, error)      { return report{}, errors.New("x") }
