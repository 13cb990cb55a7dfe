// Package repo holds the rules of this repository that no compiler checks, as
// tests: who may import whom, what every package must have, and that the
// documents name things that exist.
package repo
