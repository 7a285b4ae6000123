"""From finished jobs to one fused model: reads results and data, lets ``fusion`` search, writes what came out."""
