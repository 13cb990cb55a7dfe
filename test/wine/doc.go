// Package wine drives the programs as they are built for Windows, and holds what
// `make test-wine` runs them with where there is no Windows: Wine, and two
// libraries that it lacks. See run.sh.
package wine
