/* The multiplying loops of scan.c for one kind of processor. scan.c includes this file once for each kind, having
   defined

   NAME(function)   the function's name for this kind
   TARGET           the attribute that lets the compiler use its instructions
   vector, LANES    so many float32
   ZERO, LOAD(at), WIDEN(at), MULTIPLY_ADD(a, b, c), SUM(a)
                    LOAD takes float32; WIDEN takes float16 and widens exactly; SUM adds in a tree of log2(LANES) levels
   WIDEN_EIGHT(at), MULTIPLY_ADD_EIGHT(a, b, c)
                    eight float64; the first takes float16
   WIDE_ROWS        rows at once against four vectors, once they are widened: what the registers hold
   STRANDS          sums side by side of one row with one vector, so that additions need not wait for each other
   STREAM_STEPS     of a long row that are taken at once, a multiple of STRANDS; more than that with prefetching

   A sum runs lane by lane over at most BLOCK_STEPS vectors, then over the lanes, and is added to others in float64. */

#define INLINE static inline __attribute__((always_inline)) TARGET
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL_STREAM _Pragma("GCC unroll 32")
#define BLOCK_DIM (BLOCK_STEPS * LANES)

/* Adds to sums[v][r] the products of vectors and rows over some steps, and to squares[r] those of rows with themselves.
   Few vectors: the rows are widened on the way, in registers. */
INLINE void NAME(direct_tile)(const uint8_t *const *rows, const float *vectors, size_t vector_stride, size_t step_count,
                              const int row_count, const int vector_count, double (*sums)[TILE_MAX], double *squares)
{
    vector sum[TILE_MAX][TILE_MAX], square[TILE_MAX], row[TILE_MAX];
    UNROLL for (int r = 0; r < row_count; r++)
    {
        square[r] = ZERO;
        UNROLL for (int v = 0; v < vector_count; v++) sum[v][r] = ZERO;
    }
    for (size_t step = 0; step < step_count; step++) {
        UNROLL for (int r = 0; r < row_count; r++)
        {
            row[r] = WIDEN(rows[r] + 2 * LANES * step);
            square[r] = MULTIPLY_ADD(row[r], row[r], square[r]);
        }
        UNROLL for (int v = 0; v < vector_count; v++)
        {
            vector other = LOAD(vectors + (size_t)v * vector_stride + LANES * step);
            UNROLL for (int r = 0; r < row_count; r++) sum[v][r] = MULTIPLY_ADD(row[r], other, sum[v][r]);
        }
    }
    UNROLL for (int r = 0; r < row_count; r++)
    {
        squares[r] += (double)SUM(square[r]);
        UNROLL for (int v = 0; v < vector_count; v++) sums[v][r] += (double)SUM(sum[v][r]);
    }
}

/* Adds to sums[v] the products of some vectors with one row over some steps, and to *square that of the row with
   itself. strand_count: sums side by side, so that additions need not wait for each other; at_once: steps between two
   looks at the end, a multiple of it; if it is above it, what comes next is asked for. */
INLINE void NAME(strands)(const uint8_t *row, const float *vectors, size_t vector_stride, size_t step_count,
                          const int strand_count, const int at_once, const int vector_count, double *sums, double *square)
{
    vector sum[2][STRANDS], squares[STRANDS];
    UNROLL for (int s = 0; s < strand_count; s++)
    {
        squares[s] = ZERO;
        UNROLL for (int v = 0; v < vector_count; v++) sum[v][s] = ZERO;
    }
    size_t step = 0;
    for (; step + (size_t)at_once <= step_count; step += (size_t)at_once) {
        const uint8_t *here = row + 2 * LANES * step;
        if (at_once > strand_count)
            for (int ahead = 0; ahead < 2 * LANES * at_once; ahead += LINE_BYTES)
                __builtin_prefetch(here + AHEAD_BYTES + ahead, 0, 3);
        UNROLL_STREAM for (int n = 0; n < at_once; n++)
        {
            const int s = n % strand_count;
            const float *others = vectors + LANES * (step + (size_t)n);
            vector part = WIDEN(here + 2 * LANES * n);
            squares[s] = MULTIPLY_ADD(part, part, squares[s]);
            UNROLL for (int v = 0; v < vector_count; v++)
                sum[v][s] = MULTIPLY_ADD(part, LOAD(others + (size_t)v * vector_stride), sum[v][s]);
        }
    }
    for (; step < step_count; step++) {
        vector part = WIDEN(row + 2 * LANES * step);
        squares[0] = MULTIPLY_ADD(part, part, squares[0]);
        UNROLL for (int v = 0; v < vector_count; v++)
            sum[v][0] = MULTIPLY_ADD(part, LOAD(vectors + (size_t)v * vector_stride + LANES * step), sum[v][0]);
    }
    UNROLL for (int s = 1; s < strand_count; s++)
    {
        squares[0] += squares[s];
        UNROLL for (int v = 0; v < vector_count; v++) sum[v][0] += sum[v][s];
    }
    *square += (double)SUM(squares[0]);
    UNROLL for (int v = 0; v < vector_count; v++) sums[v] += (double)SUM(sum[v][0]);
}

/* Rows one at a time against one or two vectors: memory is read in one stream, which processors foresee better than
   several. Only where the vectors stay in the first cache, since each row meets them anew. */
INLINE void NAME(stream)(const struct scan *scan, const int strand_count, const int at_once, const int vector_count)
{
    const size_t whole = scan->dim - scan->dim % LANES, stride = scan->vector_stride;
    for (size_t i = 0; i < scan->row_count; i++) {
        const uint8_t *row = row_at(scan, i);
        double sums[2] = {0}, square = 0;
        for (size_t start = 0; start < whole; start += BLOCK_DIM) {
            size_t width = whole - start < BLOCK_DIM ? whole - start : BLOCK_DIM;
            NAME(strands)(row + 2 * start, scan->vectors + start, stride, width / LANES, strand_count, at_once,
                          vector_count, sums, &square);
        }
        if (whole < scan->dim) {
            uint16_t rest[LANES] = {0};
            memcpy(rest, row + 2 * whole, 2 * (scan->dim - whole));
            NAME(strands)((const uint8_t *)rest, scan->vectors + whole, stride, 1, 1, 1, vector_count, sums, &square);
        }
        scan->squares[i] = square;
        for (int v = 0; v < vector_count; v++)
            scan->products[(size_t)v * scan->row_count + i] = sums[v];
    }
}

/* Some rows against some vectors, from the v-th on. At the end of a list the last row is repeated, for nothing. */
INLINE void NAME(direct_rows)(const struct scan *scan, size_t i, size_t v, const int row_count, const int vector_count)
{
    const size_t whole = scan->dim - scan->dim % LANES, stride = scan->vector_stride;
    const float *vectors = scan->vectors + v * stride;
    const uint8_t *rows[TILE_MAX], *at[TILE_MAX];
    double sums[TILE_MAX][TILE_MAX] = {{0}}, squares[TILE_MAX] = {0};
    for (int r = 0; r < row_count; r++)
        rows[r] = row_at(scan, i + (size_t)r < scan->row_count ? i + (size_t)r : scan->row_count - 1);
    for (size_t start = 0; start < whole; start += BLOCK_DIM) {
        size_t width = whole - start < BLOCK_DIM ? whole - start : BLOCK_DIM;
        for (int r = 0; r < row_count; r++)
            at[r] = rows[r] + 2 * start;
        NAME(direct_tile)(at, vectors + start, stride, width / LANES, row_count, vector_count, sums, squares);
    }
    if (whole < scan->dim) {
        uint16_t rest[TILE_MAX][LANES] = {{0}};
        for (int r = 0; r < row_count; r++) {
            memcpy(rest[r], rows[r] + 2 * whole, 2 * (scan->dim - whole));
            at[r] = (const uint8_t *)rest[r];
        }
        NAME(direct_tile)(at, vectors + whole, stride, 1, row_count, vector_count, sums, squares);
    }
    for (int r = 0; r < row_count && i + (size_t)r < scan->row_count; r++) {
        scan->squares[i + (size_t)r] = squares[r];
        for (int n = 0; n < vector_count; n++)
            scan->products[(v + (size_t)n) * scan->row_count + i + (size_t)r] = sums[n][r];
    }
}

/* Few vectors against all rows. The vectors are taken by fours, which find the rows in the first or second cache. */
static TARGET void NAME(direct)(const struct scan *scan)
{
    const int streams = scan->dim >= STREAM_DIM && scan->vector_count * scan->vector_stride <= STREAM_FLOATS;
    if (scan->vector_count == 1 && streams) {
        scan->dim < LONG_DIM ? NAME(stream)(scan, STRANDS, STRANDS, 1) : NAME(stream)(scan, STRANDS, STREAM_STEPS, 1);
        return;
    }
    if (scan->vector_count == 2 && streams) {
        NAME(stream)(scan, STRANDS / 2, STRANDS / 2, 2);
        return;
    }
    const size_t row_count = scan->vector_count == 1 ? 6 : 4;
    for (size_t i = 0; i < scan->row_count; i += row_count)
        for (size_t v = 0; v < scan->vector_count; v += TILE_VECTORS)
            switch (scan->vector_count - v) {
            case 1: row_count == 6 ? NAME(direct_rows)(scan, i, v, 6, 1) : NAME(direct_rows)(scan, i, v, 4, 1); break;
            case 2: NAME(direct_rows)(scan, i, v, 4, 2); break;
            case 3: NAME(direct_rows)(scan, i, v, 4, 3); break;
            default: NAME(direct_rows)(scan, i, v, 4, 4);
            }
}

/* Adds to products[v * product_stride + r]. rows: widened, BLOCK_DIM apart. */
INLINE void NAME(wide_tile)(const float *rows, const float *vectors, size_t vector_stride, size_t step_count,
                            const int vector_count, double *products, size_t product_stride, size_t row_count)
{
    vector sum[TILE_MAX][TILE_MAX], row[TILE_MAX];
    UNROLL for (int r = 0; r < WIDE_ROWS; r++) UNROLL for (int v = 0; v < vector_count; v++) sum[v][r] = ZERO;
    for (size_t step = 0; step < step_count; step++) {
        UNROLL for (int r = 0; r < WIDE_ROWS; r++) row[r] = LOAD(rows + (size_t)r * BLOCK_DIM + LANES * step);
        UNROLL for (int v = 0; v < vector_count; v++)
        {
            vector other = LOAD(vectors + (size_t)v * vector_stride + LANES * step);
            UNROLL for (int r = 0; r < WIDE_ROWS; r++) sum[v][r] = MULTIPLY_ADD(row[r], other, sum[v][r]);
        }
    }
    UNROLL for (int v = 0; v < vector_count; v++) UNROLL for (int r = 0; r < WIDE_ROWS; r++)
    {
        if ((size_t)r < row_count)
            products[(size_t)v * product_stride + (size_t)r] += (double)SUM(sum[v][r]);
    }
}

/* Widens a stretch of a row, with zeros up to a whole vector, and returns the sum of its squares. */
INLINE double NAME(widen)(const uint8_t *row, size_t width, float *wide)
{
    vector square = ZERO;
    size_t at = 0;
    for (; at + LANES <= width; at += LANES) {
        vector part = WIDEN(row + 2 * at);
        square = MULTIPLY_ADD(part, part, square);
        memcpy(wide + at, &part, sizeof part);
    }
    if (at < width) {
        uint16_t rest[LANES] = {0};
        memcpy(rest, row + 2 * at, 2 * (width - at));
        vector part = WIDEN((const uint8_t *)rest);
        square = MULTIPLY_ADD(part, part, square);
        memcpy(wide + at, &part, sizeof part);
    }
    return (double)SUM(square);
}

/* Many vectors: a panel of rows is widened once, block by block of coordinates. The block's vectors are taken by fours,
   which stay in the first cache while the panel passes from the second. wide: PANEL_ROWS blocks. */
static TARGET void NAME(wide)(const struct scan *scan, float *wide)
{
    memset(scan->products, 0, sizeof(double) * scan->vector_count * scan->row_count);
    memset(scan->squares, 0, sizeof(double) * scan->row_count);
    for (size_t first = 0; first < scan->row_count; first += PANEL_ROWS) {
        size_t count = scan->row_count - first < PANEL_ROWS ? scan->row_count - first : PANEL_ROWS;
        for (size_t start = 0; start < scan->dim; start += BLOCK_DIM) {
            size_t width = scan->dim - start < BLOCK_DIM ? scan->dim - start : BLOCK_DIM;
            size_t step_count = (width + LANES - 1) / LANES;
            for (size_t i = 0; i < count; i++)
                scan->squares[first + i] +=
                    NAME(widen)(row_at(scan, first + i) + 2 * start, width, wide + i * BLOCK_DIM);
            for (size_t v = 0; v < scan->vector_count; v += TILE_VECTORS)
                for (size_t i = 0; i < count; i += WIDE_ROWS) {
                    const float *rows = wide + i * BLOCK_DIM, *vectors = scan->vectors + v * scan->vector_stride + start;
                    double *products = scan->products + v * scan->row_count + first + i;
                    switch (scan->vector_count - v) {
                    case 1:
                        NAME(wide_tile)
                        (rows, vectors, scan->vector_stride, step_count, 1, products, scan->row_count, count - i);
                        break;
                    case 2:
                        NAME(wide_tile)
                        (rows, vectors, scan->vector_stride, step_count, 2, products, scan->row_count, count - i);
                        break;
                    case 3:
                        NAME(wide_tile)
                        (rows, vectors, scan->vector_stride, step_count, 3, products, scan->row_count, count - i);
                        break;
                    default:
                        NAME(wide_tile)
                        (rows, vectors, scan->vector_stride, step_count, 4, products, scan->row_count, count - i);
                    }
                }
        }
    }
}

/* Adds the products of stretches of some rows with one of a vector to sum, and those of rows with themselves to square if
   they are wanted, lane by lane. width: a multiple of EXACT_LANES. */
INLINE void NAME(exact_steps)(const uint8_t *const *rows, const double *other, size_t width, const int row_count,
                              const int with_squares, eight (*sum)[2], eight (*square)[2])
{
    for (size_t at = 0; at < width; at += EXACT_LANES)
        UNROLL for (int half = 0; half < 2; half++)
        {
            eight part;
            memcpy(&part, other + at + 8 * half, sizeof part);
            UNROLL for (int r = 0; r < row_count; r++)
            {
                eight row = WIDEN_EIGHT(rows[r] + 2 * (at + 8 * (size_t)half));
                sum[r][half] = MULTIPLY_ADD_EIGHT(row, part, sum[r][half]);
                if (with_squares)
                    square[r][half] = MULTIPLY_ADD_EIGHT(row, row, square[r][half]);
            }
        }
}

/* The products of some rows with one vector in float64, and those of rows with themselves if they are wanted. Each sum runs
   over sixteen lanes and then over these, so its order depends on dim alone, never on where a row stands. */
INLINE void NAME(exact_rows)(const struct exact_scan *scan, size_t i, size_t v, const int row_count,
                             const int with_squares)
{
    const size_t dim = scan->rows.dim, whole = dim - dim % EXACT_LANES;
    const double *other = scan->vectors + v * scan->rows.vector_stride;
    eight sum[EXACT_ROWS][2], square[EXACT_ROWS][2];
    uint16_t rest[EXACT_ROWS][EXACT_LANES] = {{0}};
    const uint8_t *rows[EXACT_ROWS], *rests[EXACT_ROWS];
    UNROLL for (int r = 0; r < row_count; r++)
    {
        UNROLL for (int half = 0; half < 2; half++) sum[r][half] = square[r][half] = (eight){0};
        rows[r] = row_at(&scan->rows, i + (size_t)r);
        memcpy(rest[r], rows[r] + 2 * whole, 2 * (dim - whole));
        rests[r] = (const uint8_t *)rest[r];
    }
    NAME(exact_steps)(rows, other, whole, row_count, with_squares, sum, square);
    if (whole < dim)
        NAME(exact_steps)(rests, other + whole, EXACT_LANES, row_count, with_squares, sum, square);
    UNROLL for (int r = 0; r < row_count; r++)
    {
        double total = 0, total_square = 0;
        for (int lane = 0; lane < EXACT_LANES; lane++) {
            total += sum[r][lane / 8][lane % 8];
            total_square += square[r][lane / 8][lane % 8];
        }
        scan->rows.products[v * scan->rows.row_count + i + (size_t)r] = total;
        if (with_squares)
            scan->rows.squares[i + (size_t)r] = total_square;
    }
}

/* The products of rows in float64. */
static TARGET void NAME(exact)(const struct exact_scan *scan)
{
    const size_t row_count = scan->rows.row_count, whole = row_count - row_count % EXACT_ROWS;
    for (size_t i = 0; i < whole; i += EXACT_ROWS) {
        NAME(exact_rows)(scan, i, 0, EXACT_ROWS, 1);
        for (size_t v = 1; v < scan->rows.vector_count; v++)
            NAME(exact_rows)(scan, i, v, EXACT_ROWS, 0);
    }
    for (size_t i = whole; i < row_count; i++) {
        NAME(exact_rows)(scan, i, 0, 1, 1);
        for (size_t v = 1; v < scan->rows.vector_count; v++)
            NAME(exact_rows)(scan, i, v, 1, 0);
    }
}

#undef INLINE
#undef UNROLL
#undef UNROLL_STREAM
#undef BLOCK_DIM
#undef NAME
#undef TARGET
#undef vector
#undef LANES
#undef ZERO
#undef LOAD
#undef WIDEN
#undef WIDEN_EIGHT
#undef MULTIPLY_ADD_EIGHT
#undef MULTIPLY_ADD
#undef SUM
#undef WIDE_ROWS
#undef STRANDS
#undef STREAM_STEPS
