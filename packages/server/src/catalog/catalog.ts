/** The front door of the catalog component; see docs/internals/seam.md. */
export {};
