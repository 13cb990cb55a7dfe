// Empty does nothing: it is what any Go program costs to start.
package main

func main() {}
