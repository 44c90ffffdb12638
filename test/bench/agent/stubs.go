package main

import (
	"context"
	"errors"
)

func benchFinish(ctx context.Context, e *env) (report, error)   { return report{}, errors.New("x") }
func benchCasts(ctx context.Context, e *env) (report, error)    { return report{}, errors.New("x") }
func benchMonitors(ctx context.Context, e *env) (report, error) { return report{}, errors.New("x") }
func benchLab(ctx context.Context, e *env) (report, error)      { return report{}, errors.New("x") }
